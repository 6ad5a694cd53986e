//! A plan for people.

use std::fmt::Write as _;

use super::{Plan, Side};

/// Bytes in the unit that fits.
pub(super) fn bytes(bytes: f64) -> String {
    let (mut number, mut unit) = (bytes, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if number < 1024.0 {
            break;
        }
        (number, unit) = (number / 1024.0, next);
    }
    format!("{number:.*} {unit}", usize::from(number < 100.0))
}

impl Plan {
    /// Two columns, one for each side, and what follows from both.
    pub fn table(&self) -> String {
        let second = if self.reward.is_some() { "reward worker" } else { "" };
        let mut out = format!("{:<26} {:<24} {second}", "", "generator").trim_end().to_owned() + "\n";
        let mut row = |name: &str, of: &dyn Fn(&Side) -> String| {
            let reward = self.reward.as_ref().map_or(String::new(), of);
            // Writing to a string cannot fail.
            let _ =
                writeln!(out, "{}", format!("{name:<26} {:<24} {reward}", of(&self.generator)).trim_end());
        };
        let ms = |seconds: f64| format!("{:.2} ms", 1e3 * seconds);
        row("model", &|s| s.model.clone());
        row("device", &|s| s.device.name.clone());
        row("reads from memory", &|s| format!("{:.0} GB/s", s.device.bandwidth / 1e9));
        row("computes", &|s| format!("{:.1} TFLOP/s", s.device.flops / 1e12));
        row("weights in memory", &|s| bytes(s.weights));
        row("memory of a sequence", &|s| bytes(s.sequence));
        row("sequences that fit", &|s| format!("{:.0}", s.fit));
        row("sequences at once", &|s| format!("{:.0}", s.at_once));
        row("step, one sequence", &|s| ms(s.step_alone));
        row("step, all at once", &|s| ms(s.step) + if s.arithmetic { " (arithmetic)" } else { " (memory)" });
        row("prompt", &|s| ms(s.prefill));
        row("tokens/s, a device", &|s| format!("{:.0}", s.tokens_per_second));
        row("devices", &|s| format!("{:.0}", s.replicas));
        let _ = writeln!(out);
        if self.reward.is_some() {
            let _ = writeln!(out, "workers for a generator    {:.2}", self.workers_per_generator);
        }
        let _ =
            writeln!(out, "a token takes              {} (paced by the {})", ms(self.step), self.paced_by);
        let _ = writeln!(out, "texts at once              {:.0}", self.texts.ceil());
        let _ = writeln!(out, "tokens/s in all, at most   {:.0}", self.tokens_per_second);
        out
    }
}
