//! Any text as `tokenizer.json` and `tokenizer_config.json`: a tokenizer that can be asked, or an error.
#![no_main]

use attune_engine::Tokenizer;
use attune_fuzz::Victim;
use libfuzzer_sys::fuzz_target;

const FILE: &str = "tokenizer.json";

fuzz_target!(init: { Victim::with("tokenizer", FILE); }, |data: &[u8]| {
    let victim = Victim::with("tokenizer", FILE);
    victim.put(FILE, data);
    victim.put("tokenizer_config.json", data);
    if let Ok(tokenizer) = Tokenizer::load(victim.path()) {
        drop(tokenizer.encode_raw("What is a good way to bake the bread? \u{1f35e}\u{fe0f} \0\u{202e}"));
        let bytes: usize = (0..tokenizer.size() as u32).map(|id| tokenizer.output_bytes(id).len()).sum();
        assert_eq!(tokenizer.fingerprint(u32::MAX).len(), 64, "{bytes}");
    }
});
