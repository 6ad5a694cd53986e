//! How large a pair must be for given models, devices and load: `docs/sizing.md` in code. Nothing is measured
//! here but, where asked for, this machine's bandwidth and arithmetic.

mod cost;
mod device;
mod table;

use anyhow::{Result, bail};
use serde::Serialize;

pub use cost::{Cost, Model, Storage};
pub use device::Device;

/// A side: its model's cost on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Half {
    /// What the model is called.
    pub model: String,
    /// What it costs.
    pub cost: Cost,
    /// What computes it.
    pub device: Device,
}

/// What the pair shall serve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// So many texts at once.
    Streams(f64),
    /// So many texts a second.
    Requests(f64),
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The base model's side.
    pub generator: Half,
    /// The reward model's side. `None`: plain decoding.
    pub reward: Option<Half>,
    /// Guidances of a text: as many sessions.
    pub guidances: f64,
    /// Tokens of a prompt, and of the text that follows.
    pub lengths: (f64, f64),
    /// Tokens of context that memory is kept for, at least the lengths' sum.
    pub context: f64,
    /// What is to be served.
    pub load: Load,
    /// The most texts of a generator, and sessions of a worker: their `slots`.
    pub slots: (f64, f64),
    /// The longest that a token may take, in seconds. `None`: as long as full devices take.
    pub longest_step: Option<f64>,
    /// From candidates sent to rewards received, in seconds.
    pub round_trip: f64,
    /// How far steps are above their floor: a factor.
    pub above_floor: f64,
    /// The share of a device's memory that weights and caches may take.
    pub usable: f64,
}

/// A side of a plan. Bytes and seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// The model.
    pub model: String,
    /// The device.
    pub device: Device,
    /// Bytes of weights in memory.
    pub weights: f64,
    /// Bytes that a text (a session) takes at the full context.
    pub sequence: f64,
    /// Texts (sessions) that fit into memory, no more than the slots.
    pub fit: f64,
    /// Texts (sessions) of one device in this plan.
    pub at_once: f64,
    /// A step of one text (session) alone.
    pub step_alone: f64,
    /// A step of all `at_once`, their share of prefill included.
    pub step: f64,
    /// Whether that step is arithmetic rather than memory.
    pub arithmetic: bool,
    /// Reading one prompt: the arithmetic of it.
    pub prefill: f64,
    /// Tokens a second that the device could do by itself (worker: of guided texts).
    pub tokens_per_second: f64,
    /// Devices for the load.
    pub replicas: f64,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The generators.
    pub generator: Side,
    /// The workers.
    pub reward: Option<Side>,
    /// Workers for each generator. 0: none are asked for.
    pub workers_per_generator: f64,
    /// A step of the pair, the round trip included.
    pub step: f64,
    /// Which side the other waits for: "generator" or "reward".
    pub paced_by: &'static str,
    /// Tokens a second that all generators give, at most.
    pub tokens_per_second: f64,
    /// Texts at once under the load.
    pub texts: f64,
}

impl Half {
    /// Seconds of a step of `rows` texts with `context` tokens each, by memory and by arithmetic.
    fn bounds(&self, rows: f64, context: f64) -> (f64, f64) {
        let c = &self.cost;
        let bytes = c.read + rows * (c.row_read + c.cache_read * context);
        let flops = rows * (c.flops + c.attention_flops * context);
        (bytes / self.device.bandwidth, flops / self.device.flops)
    }
}

impl Ask {
    fn step(&self, half: &Half, rows: f64) -> f64 {
        // On average a text stands in its middle.
        let (prompt, output) = self.lengths;
        let (memory, arithmetic) = half.bounds(rows, prompt + output / 2.0);
        self.above_floor * memory.max(arithmetic)
    }

    fn prefill(&self, half: &Half) -> f64 {
        let (prompt, _) = self.lengths;
        let flops = prompt * (half.cost.flops + half.cost.attention_flops * prompt / 2.0);
        self.above_floor * flops / half.device.flops
    }

    /// A step with the prefill that falls into it: of `rows` texts, `rows / output` begin at each step.
    fn busy_step(&self, half: &Half, rows: f64) -> f64 {
        self.step(half, rows) + rows / self.lengths.1 * self.prefill(half)
    }

    /// Texts (sessions) that fit into a device's memory, no more than its slots.
    fn fit(&self, half: &Half, slots: f64) -> Result<f64> {
        let room = self.usable * half.device.memory - half.cost.memory;
        let fit = (room / (half.cost.cache * self.context)).floor();
        if fit < 1.0 {
            bail!(
                "{} does not fit on {}: its weights take {}, one text of {} tokens {}, and {} may be used",
                half.model,
                half.device.name,
                table::bytes(half.cost.memory),
                self.context,
                table::bytes(half.cost.cache * self.context),
                table::bytes(self.usable * half.device.memory),
            );
        }
        Ok(fit.min(slots))
    }

    /// The most of `fit` whose step takes no longer.
    fn most_within(&self, half: &Half, fit: f64, seconds: f64) -> f64 {
        // A step grows with its rows.
        let (mut most, mut too_many) = (0.0_f64, fit.floor() + 1.0);
        while too_many - most > 1.0 {
            let middle = ((most + too_many) / 2.0).floor();
            if self.busy_step(half, middle) <= seconds { most = middle } else { too_many = middle }
        }
        most
    }

    /// The plan.
    ///
    /// # Errors
    /// A model does not fit on its device, or a step cannot be as short as asked.
    pub fn plan(&self) -> Result<Plan> {
        let budget = self.longest_step.map_or(f64::INFINITY, |longest| longest - self.round_trip);
        // No more than there are.
        let most = match self.load {
            Load::Streams(streams) => streams.max(1.0),
            Load::Requests(_) => f64::INFINITY,
        };
        let texts = self.fit(&self.generator, self.slots.0)?.min(most);
        let texts = self.most_within(&self.generator, texts, budget);
        let own = self.busy_step(&self.generator, texts.max(1.0));
        let reward = match &self.reward {
            None => None,
            Some(half) => {
                let fit = self.fit(half, self.slots.1)?.min((most * self.guidances).ceil());
                Some((half, self.sessions(half, self.most_within(half, fit, budget), texts, own)))
            }
        };
        if reward.as_ref().map_or(texts, |(_, sessions)| texts.min(*sessions)) < 1.0 {
            let alone = |half: &Half| self.busy_step(half, 1.0);
            let shortest = self.reward.as_ref().map_or(0.0, alone).max(alone(&self.generator));
            bail!(
                "a token takes at least {:.2} ms on these devices: allow more (--max-step-ms)",
                1e3 * (shortest + self.round_trip)
            );
        }
        let theirs = reward.as_ref().map_or(0.0, |(half, sessions)| self.busy_step(half, *sessions));
        let round_trip = if reward.is_some() { self.round_trip } else { 0.0 };
        let step = own.max(theirs) + round_trip;
        let (generators, texts_at_once) = match self.load {
            Load::Streams(streams) => ((streams / texts).ceil(), streams),
            Load::Requests(rate) => {
                let tokens = rate * self.lengths.1;
                ((tokens * step / texts).ceil().max(1.0), tokens * step)
            }
        };
        let sessions_at_once = texts_at_once * self.guidances;
        let reward_side = reward.as_ref().map(|&(half, sessions)| {
            let workers = (sessions_at_once / sessions).ceil().max(1.0);
            self.side(half, self.slots.1, sessions, sessions / self.guidances, workers)
        });
        Ok(Plan {
            generator: self.side(&self.generator, self.slots.0, texts, texts, generators)?,
            workers_per_generator: reward.map_or(0.0, |(_, sessions)| texts * self.guidances / sessions),
            reward: reward_side.transpose()?,
            step,
            paced_by: if theirs > own { "reward" } else { "generator" },
            tokens_per_second: generators * texts / step,
            texts: texts_at_once,
        })
    }

    /// The sessions of a worker, at most `fit`, with which the devices of a generator of `texts` texts give the
    /// most tokens a second each.
    fn sessions(&self, half: &Half, fit: f64, texts: f64, own: f64) -> f64 {
        let each = |sessions: f64| {
            let step = own.max(self.busy_step(half, sessions)) + self.round_trip;
            texts / step / (1.0 + texts * self.guidances / sessions)
        };
        let counts = (1..=fit as u32).map(f64::from);
        counts.max_by(|&a, &b| each(a).total_cmp(&each(b))).unwrap_or(0.0)
    }

    fn side(&self, half: &Half, slots: f64, at_once: f64, texts: f64, replicas: f64) -> Result<Side> {
        let (memory, arithmetic) = half.bounds(at_once, self.lengths.0 + self.lengths.1 / 2.0);
        let step = self.busy_step(half, at_once);
        Ok(Side {
            model: half.model.clone(),
            device: half.device.clone(),
            weights: half.cost.memory,
            sequence: half.cost.cache * self.context,
            fit: self.fit(half, slots)?,
            at_once,
            step_alone: self.step(half, 1.0),
            step,
            arithmetic: arithmetic > memory,
            prefill: self.prefill(half),
            tokens_per_second: texts / step,
            replicas,
        })
    }
}

#[cfg(test)]
mod tests;
