//! Any text as a chat template: it renders or refuses, within its limits of time and memory.
#![no_main]

use attune_engine::{ChatTemplate, Message, PreferenceTemplate};
use attune_fuzz::Victim;
use libfuzzer_sys::fuzz_target;

const FILE: &str = "chat_template.jinja";

fuzz_target!(init: { Victim::with("chat_template", FILE); }, |data: &[u8]| {
    let victim = Victim::with("chat_template", FILE);
    victim.put(FILE, data);
    let messages = [Message::new("system", "Be kind."), Message::new("user", "hello")];
    if let Ok(template) = ChatTemplate::load(victim.path()) {
        drop(template.render(&messages, true));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(template) = PreferenceTemplate::new(Some(text))
    {
        drop(template.apply(&messages, "brief, please"));
    }
});
