//! The `attune` command: generate, compare, describe, fit and keep profiles, train, write models to measure with, make
//! tokens, size a pair.
#![forbid(unsafe_code)]

mod bench;
mod client;
mod columns;
mod compare;
mod contributions;
mod describe;
mod eval;
mod failure;
mod fetch;
mod fit;
mod generate;
mod gpu;
mod health;
mod json;
mod models;
mod plan;
mod profile;
mod request;
mod request_args;
mod stream;
mod table;
mod token;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Language models that answer in each person's way, aligned while they decode.
#[derive(Debug, Parser)]
#[command(name = "attune", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "With `make run` in another terminal:
  attune generate --prefer \"with a funny joke\" \"How do I bake the bread?\"
  attune describe")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate a text, guided by any number of preferences.
    Generate(Box<generate::GenerateArgs>),
    /// Show what a generator (or a reward worker) serves.
    Describe(describe::DescribeArgs),
    /// Fit a profile to what somebody said of answers.
    Fit(Box<fit::FitArgs>),
    /// Keep people's profiles, and carry them over to another store or model.
    Profile(profile::ProfileArgs),
    /// Ask whether a service is well: for health checks that run a command.
    Health(health::HealthArgs),
    /// Fetch a model from the hub before a service needs it.
    Fetch(fetch::FetchArgs),
    /// Train models.
    Train(train::TrainArgs),
    /// Measure how well each method aligns, with one judge in one run: the table, and a plot.
    Eval(Box<eval::EvalArgs>),
    /// Measure: load on a running pair, or the pieces of a step.
    Bench(bench::BenchArgs),
    /// Check, or measure, on an NVIDIA card.
    Gpu(gpu::GpuArgs),
    /// Write seeded random models of known shapes, to test and measure with.
    Models(models::ModelsArgs),
    /// Work out how many devices of which size given models and load need.
    Plan(Box<plan::PlanArgs>),
    /// Make a token that says who calls, and the line that tells the generator of it.
    Token(token::TokenArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Generate(args) => with_runtime(generate::run(*args)),
        Command::Describe(args) => with_runtime(describe::run(args)),
        Command::Fit(args) => with_runtime(fit::run(*args)),
        Command::Profile(args) => with_runtime(profile::run(args)),
        Command::Health(args) => with_runtime(health::run(args)),
        Command::Fetch(args) => fetch::run(&args),
        Command::Train(args) => train::run(args),
        Command::Eval(args) => with_runtime(eval::run(*args)),
        Command::Bench(args) => bench::run(args),
        Command::Gpu(args) => gpu::run(args),
        Command::Models(args) => models::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Token(args) => token::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

/// Runs a command until it is done or ctrl-c is pressed; what it had open is then dropped, which cancels
/// it on the server.
fn with_runtime(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            done = command => done,
            pressed = tokio::signal::ctrl_c() => {
                pressed?;
                Err(failure::Interrupted.into())
            }
        }
    })
}
