//! The bench of methods runs from end to end, with the services as processes, on the embedded pair.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::process::Command;

use attune_tests::{binary, workspace_root};
use serde_json::Value;

#[test]
fn a_quick_run_writes_its_table_and_its_plot() {
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(binary("attune").unwrap())
        .current_dir(workspace_root())
        .args(["eval", "--quick", "--json", "--methods", "unguided,prompted,pad-model,linear-alignment"])
        .args(["--out", &out.path().to_string_lossy()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let written = std::fs::read_to_string(out.path().join("table.json")).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Value>>(&written).unwrap(), rows);
    assert!(std::fs::read_to_string(out.path().join("plot.svg")).unwrap().contains("</svg>"));
    let answers = std::fs::read_to_string(out.path().join("answers.jsonl")).unwrap();
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 4 * 24);
    for (row, of_row) in rows.iter().zip(answers.chunks(24)) {
        let satisfied = of_row.iter().filter(|a| a["satisfied"] == true).count() as f64 / 24.0;
        assert!(
            (satisfied - row["satisfaction"].as_f64().unwrap()).abs() < 1e-9,
            "the rows are of these answers"
        );
        assert!(of_row.iter().all(|a| a["method"] == row["method"] && a["answer"] != ""));
    }
    let methods: Vec<&str> = rows.iter().map(|row| row["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["unguided", "prompted", "pad-model", "linear-alignment"]);
    for row in &rows {
        for share in ["satisfaction", "seen", "unseen", "well_formed"] {
            assert!((0.0..=1.0).contains(&row[share].as_f64().unwrap()), "{row}");
        }
        assert!(row["ms_per_token"].as_f64().unwrap() > 0.0);
        assert_eq!((row["answers"].as_u64(), row["train_seconds"].as_f64()), (Some(24), Some(0.0)));
        // The base finds what it says itself likely.
        assert!((1.0..20.0).contains(&row["perplexity"].as_f64().unwrap()), "{row}");
    }
    let satisfied = |i: usize| rows[i]["satisfaction"].as_f64().unwrap();
    assert!(satisfied(2) > satisfied(0) + 0.2, "guidance shows even in 24 answers: {rows:?}");
}

#[test]
fn unknown_methods_are_refused_with_those_there_are() {
    let output =
        Command::new(binary("attune").unwrap()).args(["eval", "--methods", "magic"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("pad-model") && message.contains("soups"), "{message}");
}
