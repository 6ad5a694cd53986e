//! The simulated pair: real services, real decisions, real models of a tiny shape; only threads, clocks
//! and sockets are simulated.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use attune_generator::{GeneratorConfig, simulation as generator};
use attune_proto::generator::v1::{GenerateRequest, generator_service_client::GeneratorServiceClient};
use attune_reward::{RewardConfig, simulation as reward};
use attune_service::engine::EngineConfig;
use attune_tests::{Generated, by_ids, guided, micro_models};
use tonic::{service::Routes, transport::Endpoint};

use crate::{
    network::{dial, serve},
    plan::{Fault, Plan},
};

const PORT: u16 = 50052;
const TICK: Duration = Duration::from_millis(1);
/// How long forward passes take.
const GENERATOR_STEP: Duration = Duration::from_millis(2);
const REWARD_STEP: Duration = Duration::from_millis(3);

/// What is left over when all texts have ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Each text's place in the plan, and its tokens or what went wrong.
    pub(crate) texts: Vec<(usize, Result<Vec<u32>, String>)>,
    /// Sessions that were opened anew.
    pub(crate) moved: u64,
    /// What is held though nothing runs; empty: nothing.
    pub(crate) leaks: Vec<String>,
    /// How long it took, simulated.
    pub(crate) elapsed: Duration,
}

/// The texts that simulations ask for.
pub(crate) fn catalogue() -> Vec<GenerateRequest> {
    (0..24u32)
        .map(|i| {
            let prompt: Vec<u32> = (0..1 + i * 5 % 37).map(|t| (t * 31 + i * 17) % 256).collect();
            let mut request = by_ids(&prompt, 4 + i * 7 % 17);
            request.guidances = (0..(i + 2) % 3).map(|j| guided(2.5 - j as f32)).collect();
            if let Some(sampling) = &mut request.sampling {
                sampling.temperature = Some([0.0, 0.8, 1.3][i as usize % 3]);
                sampling.seed = Some(u64::from(i));
            }
            request
        })
        .collect()
}

/// A text's number, and its tokens or how it failed.
type Ended = (usize, Result<Vec<u32>, String>);

/// What all parts of a simulation see of each other beside the network.
#[derive(Default)]
struct Shared {
    /// Sessions and blocks that each worker holds.
    held: RefCell<Vec<(u32, u32)>>,
    /// Workers that shall shut down.
    draining: RefCell<BTreeSet<usize>>,
    /// Texts, sessions and blocks that the generator holds.
    generator: Cell<(usize, usize, usize)>,
    moved: Cell<u64>,
    texts: RefCell<Vec<Ended>>,
}

/// Runs a plan to its end.
pub(crate) fn run(plan: &Plan) -> Outcome {
    let mut sim = turmoil::Builder::new()
        .rng_seed(plan.seed)
        .simulation_duration(Duration::from_secs(24 * 3600))
        .tick_duration(TICK)
        .min_message_latency(Duration::from_micros(100))
        .max_message_latency(plan.delay)
        .tcp_capacity(4096)
        .build();
    let shared = Rc::new(Shared::default());
    *shared.held.borrow_mut() = vec![(0, 0); plan.workers];
    for index in 0..plan.workers {
        let (shared, slots, chunk, company) = (Rc::clone(&shared), plan.slots, plan.chunk, plan.company);
        sim.host(name(index), move || worker(index, slots, chunk, company, Rc::clone(&shared)));
    }
    let addresses: Vec<SocketAddr> =
        (0..plan.workers).map(|index| SocketAddr::new(sim.lookup(name(index)), PORT)).collect();
    let dns = Arc::new(Mutex::new(addresses.clone()));
    {
        let (shared, plan, dns) = (Rc::clone(&shared), plan.clone(), Arc::clone(&dns));
        sim.host("generator", move || generate(plan.clone(), Arc::clone(&dns), Rc::clone(&shared)));
    }
    sim.client("client", ask(plan.clone(), Rc::clone(&shared)));

    let mut faults = plan.faults.iter().peekable();
    loop {
        while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= sim.elapsed()) {
            match *fault {
                Fault::Crash(w) => {
                    sim.crash(name(w));
                    shared.held.borrow_mut()[w] = (0, 0);
                }
                Fault::Restart(w) => {
                    shared.draining.borrow_mut().remove(&w);
                    sim.bounce(name(w));
                }
                Fault::Drain(w) => {
                    shared.draining.borrow_mut().insert(w);
                }
                Fault::Partition(w) => sim.partition("generator", name(w)),
                Fault::Repair(w) => sim.repair("generator", name(w)),
                Fault::Hold(w) => sim.hold("generator", name(w)),
                Fault::Release(w) => sim.release("generator", name(w)),
                Fault::Vanish(w) => dns.lock().unwrap().retain(|a| *a != addresses[w]),
                Fault::Appear(w) => {
                    let mut dns = dns.lock().unwrap();
                    if !dns.contains(&addresses[w]) {
                        dns.push(addresses[w]);
                    }
                }
            }
        }
        if sim.step().unwrap() {
            break;
        }
    }
    let mut texts = shared.texts.take();
    texts.sort_by_key(|(index, _)| *index);
    let mut leaks = Vec::new();
    if shared.generator.get() != (0, 0, 0) {
        leaks.push(format!("generator: {:?}", shared.generator.get()));
    }
    leaks.extend(
        shared
            .held
            .borrow()
            .iter()
            .enumerate()
            .filter(|(_, held)| **held != (0, 0))
            .map(|h| format!("{h:?}")),
    );
    Outcome { texts, moved: shared.moved.get(), leaks, elapsed: sim.elapsed() }
}

fn name(worker: usize) -> String {
    format!("reward-{worker}")
}

async fn worker(
    index: usize,
    slots: usize,
    chunk: usize,
    company: bool,
    shared: Rc<Shared>,
) -> turmoil::Result {
    let engine =
        EngineConfig { slots, prefill_chunk: Some(chunk), cache_mib: Some(1), ..EngineConfig::default() };
    let config = RewardConfig { engine, ..RewardConfig::default() };
    let (service, mut driver) = reward::worker(&config, Arc::clone(&micro_models().1), company)?;
    tokio::spawn(serve(Routes::new(service), PORT));
    let mut drained = false;
    loop {
        if !drained && shared.draining.borrow().contains(&index) {
            driver.drain();
            drained = true;
        }
        let computed = driver.proceed();
        shared.held.borrow_mut()[index] = driver.held();
        tokio::time::sleep(if computed { REWARD_STEP } else { TICK }).await;
    }
}

async fn generate(plan: Plan, dns: Arc<Mutex<Vec<SocketAddr>>>, shared: Rc<Shared>) -> turmoil::Result {
    let mut config = GeneratorConfig {
        reward: vec![format!("http+dns://rewards:{PORT}")],
        engine: EngineConfig {
            slots: plan.generator_slots,
            prefill_chunk: Some(plan.chunk),
            cache_mib: Some(1),
            ..EngineConfig::default()
        },
        reward_wait_max_seconds: 0.2,
        reward_prefill_max_seconds: 1.0,
        reward_loss_seconds: 600.0,
        ..GeneratorConfig::default()
    };
    // Texts wait out every fault.
    (config.server.limits.first_seconds, config.server.limits.idle_seconds) = (3600.0, 3600.0);
    let world = generator::World {
        dial: Arc::new(dial),
        resolve: Arc::new(move |_, _| {
            let workers = dns.lock().unwrap().clone();
            Box::pin(async move { Ok(workers) })
        }),
        seed: plan.seed,
    };
    let (service, mut driver, finder) = generator::generator(&config, Arc::clone(&micro_models().0), world)?;
    tokio::spawn(finder);
    tokio::spawn(serve(Routes::new(service), PORT));
    loop {
        let turn = driver.proceed();
        shared.generator.set(driver.held());
        shared.moved.set(driver.moved());
        let pause = if turn == generator::Turn::Computed { GENERATOR_STEP } else { TICK };
        tokio::time::sleep(pause).await;
    }
}

async fn ask(plan: Plan, shared: Rc<Shared>) -> turmoil::Result {
    let channel = dial(Endpoint::from_shared(format!("http://generator:{PORT}"))?).await?;
    let requests = catalogue();
    let local = tokio::task::LocalSet::new();
    let start = tokio::time::Instant::now();
    for (index, (at, text)) in plan.texts.iter().copied().enumerate() {
        let (mut client, request) = (GeneratorServiceClient::new(channel.clone()), requests[text].clone());
        let shared = Rc::clone(&shared);
        local.spawn_local(async move {
            tokio::time::sleep_until(start + at).await;
            let answer = Generated::of(&mut client, request).await;
            let answer = answer.map(|a| a.ids()).map_err(|status| format!("{status:?}"));
            shared.texts.borrow_mut().push((index, answer));
        });
    }
    local.await;
    // Everything that ran is given back within a while; a worker cut off keeps its sessions until the
    // connection is noticed to be dead.
    for _ in 0..20_000 {
        let idle = shared.generator.get() == (0, 0, 0) && shared.held.borrow().iter().all(|h| *h == (0, 0));
        if idle {
            break;
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}
