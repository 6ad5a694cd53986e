//! Plain decoding beside llama.cpp on the same checkpoint, each on all cores, in turn.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{
    Settings, Size,
    child::Child,
    cores,
    decode::{decode, middle, plain, prompt, step_ms},
    rows::{Key, Results},
    service::Service,
};

/// What llama.cpp is asked.
#[derive(Serialize)]
struct Task<'a> {
    prompt: &'a [u32],
    steps: u32,
}

#[derive(Deserialize)]
struct Decoded {
    step_ms: Vec<f64>,
    tokens: Vec<u32>,
}

pub(super) async fn run(settings: &Settings, size: Size, results: &mut Results<'_>) -> Result<()> {
    let key = Key::Llama(size);
    let Some(peers) = settings.peers.as_ref().filter(|_| settings.wants(key)) else {
        return Ok(());
    };
    let found = Command::new(&peers.python).args(["-c", "import llama_cpp, gguf"]).output().await?;
    if !found.status.success() {
        results.say(&format!("no llama-cpp-python: {key} is left out (tests/peers/README.md)"));
        return Ok(());
    }
    results.say(&format!("a generator on '{}' beside llama.cpp", size.name()));
    let generator = Service::generator(settings, size, cores(), &[], &[]).await?;
    let client = generator.client().await?;
    let mut command = Command::new(&peers.python);
    command.arg(peers.folder.join("llama.py")).args(["--threads", &cores().to_string()]);
    command.arg("--base").arg(settings.base(size));
    let mut llama = Child::start(command).await?;
    let tokens = settings.tokens(64);
    let (mut ratios, mut ours, mut theirs, mut same) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let rounds = settings.rounds(if size == Size::Small { 7 } else { 5 });
    decode(&client, plain(&prompt(0), 4)).await?;
    for round in 0..rounds {
        let ids = prompt(400 + round as u64);
        let text = decode(&client, plain(&ids, tokens)).await?;
        let decoded: Decoded = llama.ask(&Task { prompt: &ids, steps: tokens }).await?;
        let (own, other) = (step_ms(&text), middle(decoded.step_ms.into_iter().skip(1)));
        ratios.push(other / own);
        ours.push(own);
        theirs.push(other);
        same += usize::from(text.tokens == decoded.tokens);
    }
    let (own, other) = (middle(ours), middle(theirs));
    let remark =
        format!("{own:.2} ms, llama.cpp {other:.2} ms a step; same tokens in {same} of {rounds} texts");
    results.add(key, middle(ratios), &remark);
    Ok(())
}
