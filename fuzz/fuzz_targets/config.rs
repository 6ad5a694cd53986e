//! Any text as `config.json` and `generation_config.json`: a model or an error, and no more memory than the
//! weights bear out.
#![no_main]

use attune_fuzz::Victim;
use libfuzzer_sys::fuzz_target;

const FILE: &str = "config.json";

fuzz_target!(init: { Victim::with("config", FILE); }, |data: &[u8]| {
    let victim = Victim::with("config", FILE);
    victim.put(FILE, data);
    victim.put("generation_config.json", data);
    drop(victim.load(""));
});
