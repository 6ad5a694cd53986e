//! Any bytes as the weights of a checkpoint: a model or an error that names the file.
#![no_main]

use attune_fuzz::Victim;
use libfuzzer_sys::fuzz_target;

const FILE: &str = "model.safetensors";

fuzz_target!(init: { Victim::with("safetensors", FILE); }, |data: &[u8]| {
    let victim = Victim::with("safetensors", FILE);
    victim.put(FILE, data);
    drop(victim.load(""));
});
