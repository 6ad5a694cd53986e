//! `attune describe`.

use std::io::Write as _;

use anyhow::Result;
use attune_proto::{
    generator::v1::{self as generator, RewardWorker},
    reward::v1::{self as reward, Normalization, Reference},
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::{
    client::EndpointArgs,
    json::short,
    table::{brief, rows, table},
};

/// Flags of `attune describe`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attune describe\n  attune describe --endpoint http://127.0.0.1:50052   # a reward worker"
)]
pub(crate) struct DescribeArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// As one JSON object.
    #[arg(long)]
    json: bool,
}

/// Asks the server what it serves; a reward worker is asked in its own words.
pub(crate) async fn run(args: DescribeArgs) -> Result<()> {
    let endpoint = &args.endpoint;
    let (value, text) = endpoint
        .within(async {
            let asked = endpoint.request(generator::DescribeRequest::default())?;
            match endpoint.generator().await?.describe(asked).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    Ok((generator_json(&answer), generator_text(&answer)))
                }
                Err(status) if status.code() == Code::Unimplemented => {
                    let asked = endpoint.request(reward::DescribeRequest::default())?;
                    let answer = endpoint.reward().await?.describe(asked).await.map_err(|other| {
                        if other.code() == Code::Unimplemented { neither() } else { other }
                    })?;
                    let answer = answer.into_inner();
                    Ok((worker_json(&answer), worker_text(&answer)))
                }
                Err(status) => Err(status.into()),
            }
        })
        .await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{value}")?
    } else {
        out.write_all(text.as_bytes())?
    }
    Ok(())
}

fn neither() -> Status {
    Status::unimplemented("this server is neither an Attune generator nor a reward worker")
}

fn references(values: impl Iterator<Item = Reference>) -> Vec<String> {
    values.map(|r| short(r.as_str_name(), "REFERENCE_")).collect()
}

fn normalizations(values: impl Iterator<Item = Normalization>) -> Vec<String> {
    values.map(|n| short(n.as_str_name(), "NORMALIZATION_")).collect()
}

fn generator_json(d: &generator::DescribeResponse) -> Value {
    let worker = |w: &RewardWorker| {
        json!({
            "endpoint": w.endpoint, "connected": w.connected, "model_id": w.model_id,
            "model_revision": w.model_revision, "hidden_size": w.hidden_size, "methods": w.methods,
            "references": references(w.references()), "sessions": w.sessions, "slots": w.slots,
            "problem": w.problem,
        })
    };
    json!({
        "service": "generator", "model_id": d.model_id, "model_revision": d.model_revision,
        "vocab_size": d.vocab_size, "tokenizer_fingerprint": d.tokenizer_fingerprint,
        "context_length": d.context_length, "dtype": d.dtype, "device": d.device, "slots": d.slots,
        "queue": d.queue, "reward_workers": d.reward_workers.iter().map(worker).collect::<Vec<_>>(),
        "load": d.load.as_ref().map(load_json), "server_version": d.server_version,
    })
}

fn load_json(l: &generator::Load) -> Value {
    json!({
        "running": l.running, "waiting": l.waiting, "preempted": l.preempted,
        "blocks_used": l.blocks_used, "blocks_kept": l.blocks_kept, "blocks_total": l.blocks_total,
        "asked_tokens": l.asked_tokens, "hit_tokens": l.hit_tokens,
    })
}

fn worker_json(d: &reward::DescribeResponse) -> Value {
    json!({
        "service": "reward", "model_id": d.model_id, "model_revision": d.model_revision,
        "vocab_size": d.vocab_size, "tokenizer_size": d.tokenizer_size,
        "tokenizer_fingerprint": d.tokenizer_fingerprint, "context_length": d.context_length,
        "methods": d.methods, "references": references(d.references()),
        "normalizations": normalizations(d.normalizations()), "hidden_size": d.hidden_size,
        "dtype": d.dtype, "device": d.device, "slots": d.slots,
        "protocol_version": d.protocol_version, "server_version": d.server_version,
    })
}

fn generator_text(d: &generator::DescribeResponse) -> String {
    let mut out = format!("generator {}\n", d.server_version);
    out += &rows(&[
        ("model", format!("{} (revision {})", d.model_id, brief(&d.model_revision))),
        ("runs on", format!("{}, weights in {}", d.device, d.dtype)),
        ("context", format!("{} tokens", d.context_length)),
        ("vocabulary", format!("{} (tokenizer {})", d.vocab_size, brief(&d.tokenizer_fingerprint))),
        ("decodes", format!("{} at once, {} waiting", d.slots, d.queue)),
    ]);
    if let Some(l) = &d.load {
        let (used, kept, total) = (l.blocks_used, l.blocks_kept, l.blocks_total);
        out += &rows(&[
            ("busy with", format!("{} texts, {} waiting", l.running, l.waiting)),
            ("cache", format!("{used} of {total} blocks in use, {kept} kept for prompts that begin alike")),
            ("found there", format!("{} of {} tokens", l.hit_tokens, l.asked_tokens)),
        ]);
    }
    if d.reward_workers.is_empty() {
        out += "\nno reward workers: texts cannot be guided\n";
        return out;
    }
    let head = ["reward worker", "state", "model", "d", "methods", "references", "sessions"];
    let body = d.reward_workers.iter().map(|w| {
        let known = |text: String, known: bool| if known { text } else { "-".to_owned() };
        [
            w.endpoint.clone(),
            if w.connected { "ready".to_owned() } else { format!("down: {}", w.problem) },
            known(format!("{} ({})", w.model_id, brief(&w.model_revision)), !w.model_id.is_empty()),
            known(w.hidden_size.to_string(), w.hidden_size > 0),
            known(w.methods.join(", "), !w.methods.is_empty()),
            known(references(w.references()).join(", "), !w.references.is_empty()),
            known(format!("{}/{}", w.sessions, w.slots), w.slots > 0),
        ]
    });
    out + "\n" + &table(head, &body.collect::<Vec<_>>())
}

fn worker_text(d: &reward::DescribeResponse) -> String {
    format!("reward worker {} (protocol {})\n", d.server_version, d.protocol_version)
        + &rows(&[
            ("model", format!("{} (revision {})", d.model_id, brief(&d.model_revision))),
            ("runs on", format!("{}, weights in {}", d.device, d.dtype)),
            ("context", format!("{} tokens", d.context_length)),
            ("vocabulary", format!("{} (tokenizer {})", d.vocab_size, brief(&d.tokenizer_fingerprint))),
            ("weights of", format!("length {}", d.hidden_size)),
            ("methods", d.methods.join(", ")),
            ("references", references(d.references()).join(", ")),
            ("normalizations", normalizations(d.normalizations()).join(", ")),
            ("sessions", format!("{} at once", d.slots)),
        ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> generator::DescribeResponse {
        generator::DescribeResponse {
            model_id: "base".into(),
            model_revision: "0123456789abcdef".into(),
            context_length: 512,
            slots: 16,
            reward_workers: vec![
                RewardWorker {
                    endpoint: "http://127.0.0.1:1".into(),
                    connected: true,
                    model_id: "persrm".into(),
                    references: vec![Reference::Model.into(), Reference::None.into()],
                    sessions: 2,
                    slots: 32,
                    ..RewardWorker::default()
                },
                RewardWorker {
                    endpoint: "http://127.0.0.1:2".into(),
                    problem: "its tokenizer differs".into(),
                    ..RewardWorker::default()
                },
            ],
            load: Some(generator::Load {
                running: 3,
                blocks_total: 64,
                blocks_kept: 9,
                ..Default::default()
            }),
            ..generator::DescribeResponse::default()
        }
    }

    #[test]
    fn the_table_tells_workers_apart() {
        let text = generator_text(&description());
        assert!(text.contains("base (revision 0123456789ab)"), "{text}");
        assert!(text.contains("ready") && text.contains("model, none") && text.contains("2/32"), "{text}");
        assert!(text.contains("down: its tokenizer differs"), "{text}");
        assert!(text.contains("3 texts") && text.contains("0 of 64 blocks in use, 9 kept"), "{text}");
        let none = generator::DescribeResponse::default();
        assert!(generator_text(&none).contains("cannot be guided"));
    }

    #[test]
    fn json_has_the_same() {
        let value = generator_json(&description());
        assert_eq!(value["reward_workers"][0]["references"][0], "model");
        assert_eq!(value["reward_workers"][1]["connected"], false);
        assert_eq!(value["load"]["blocks_kept"], 9);
        assert_eq!(worker_json(&reward::DescribeResponse::default())["service"], "reward");
        assert!(worker_text(&reward::DescribeResponse::default()).starts_with("reward worker"));
    }
}
