//! Any bytes as a GGUF file, weights, tokenizer and template in one: a model or an error that names it.
#![no_main]

use attune_engine::Message;
use attune_fuzz::Victim;
use libfuzzer_sys::fuzz_target;

const FILE: &str = "model.gguf";

fuzz_target!(init: { Victim::with("gguf", FILE); }, |data: &[u8]| {
    let victim = Victim::with("gguf", FILE);
    victim.put(FILE, data);
    if let Ok(model) = victim.load(FILE) {
        drop(model.assets.tokenizer.encode_raw("What is a good way to bake the bread?"));
        drop(model.assets.chat.render(&[Message::new("user", "hello")], true));
    }
});
