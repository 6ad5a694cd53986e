//! `attune health`.

use std::io::Write as _;

use anyhow::{Result, bail};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::client::EndpointArgs;

/// Flags of `attune health`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  attune health                                          # a generator
  attune health --endpoint http://127.0.0.1:9464         # any service's admin port, which speaks no TLS")]
pub(crate) struct HealthArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// The service to ask for, such as attune.generator.v1.GeneratorService [default: the server as a whole]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
}

/// Asks by `grpc.health.v1`. Anything but SERVING is a failure.
pub(crate) async fn run(args: HealthArgs) -> Result<()> {
    let HealthArgs { endpoint, service } = args;
    let status = endpoint
        .within(async {
            let asked = endpoint.request(HealthCheckRequest { service })?;
            Ok(endpoint.health().await?.check(asked).await?.into_inner().status())
        })
        .await?;
    if status != ServingStatus::Serving {
        bail!("{} is {}", endpoint.endpoint, status.as_str_name());
    }
    writeln!(std::io::stdout(), "{}", status.as_str_name())?;
    Ok(())
}
