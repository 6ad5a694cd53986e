use std::io::Write as _;

use serde::Deserialize;

use super::*;
use crate::sections::{LogConfig, LogFormat, ServerConfig};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Demo {
    model: Option<String>,
    reward: Vec<String>,
    slots: u32,
    grace_ms: f32,
    server: ServerConfig,
    log: LogConfig,
}

impl Default for Demo {
    fn default() -> Self {
        Self {
            model: None,
            reward: vec!["http://127.0.0.1:50052".into()],
            slots: 16,
            grace_ms: 0.1,
            server: ServerConfig::on_port(50051),
            log: LogConfig::default(),
        }
    }
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn demo(toml: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Demo, ConfigError> {
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    Merged::of::<Demo>(Some(file.path()), "ATTUNE_GENERATOR_", pairs(env), pairs(flags))?.read()
}

#[test]
fn without_sources_it_is_the_default() {
    let got: Demo = Merged::of::<Demo>(None, "ATTUNE_GENERATOR_", [], []).unwrap().read().unwrap();
    assert_eq!(got, Demo::default());
}

#[test]
fn later_layers_win_and_leave_the_rest() {
    let got = demo(
        "slots = 1\nreward = [\"http://a\", \"http://b\"]\n[server]\nlisten = \"127.0.0.1:1\"\ndrain_seconds = 3\n[log]\nformat = \"json\"",
        &[
            ("ATTUNE_GENERATOR_SLOTS", "2"),
            ("ATTUNE_GENERATOR_SERVER__LISTEN", "127.0.0.1:2"),
            ("ATTUNE_REQUIRE_ALL", "1"),
            ("ATTUNE_REWARD_SLOTS", "9"),
        ],
        &[("server.listen", "127.0.0.1:3"), ("model", "dir"), ("reward", "http://c"), ("reward", "http://d")],
    )
    .unwrap();
    assert_eq!(got.slots, 2);
    assert_eq!(got.model.as_deref(), Some("dir"));
    assert_eq!(got.reward, ["http://c", "http://d"]);
    assert_eq!(got.server.listen.port(), 3);
    assert_eq!(got.server.drain_seconds, 3.0);
    assert_eq!(got.server.max_message_bytes, ServerConfig::default().max_message_bytes);
    assert_eq!(got.log.format, LogFormat::Json);
}

#[test]
fn a_shorter_list_replaces_a_longer_one() {
    let got = demo("reward = []", &[], &[]).unwrap();
    assert!(got.reward.is_empty());
    let got = demo("", &[("ATTUNE_GENERATOR_REWARD", "http://a, http://b")], &[]).unwrap();
    assert_eq!(got.reward, ["http://a", "http://b"]);
}

#[test]
fn unknown_keys_are_named_with_their_source_and_a_suggestion() {
    let text = demo("slotts = 1", &[], &[]).unwrap_err().to_string();
    assert!(text.contains("`slotts`") && text.contains(".toml") && text.contains("`slots`"), "{text}");
    let text = demo("[server]\nlisen = \"x\"", &[], &[]).unwrap_err().to_string();
    assert!(text.contains("`server.lisen`") && text.contains("`server.listen`"), "{text}");
    let text = demo("", &[("ATTUNE_GENERATOR_SERVER_LISTEN", "x")], &[]).unwrap_err().to_string();
    assert!(
        text.contains("ATTUNE_GENERATOR_SERVER_LISTEN") && text.contains("`ATTUNE_GENERATOR_SERVER__LISTEN`"),
        "{text}"
    );
    let text = demo("", &[], &[("log.fliter", "x")]).unwrap_err().to_string();
    assert!(text.contains("`log.fliter`") && text.contains("command line"), "{text}");
}

#[test]
fn kubernetes_service_links_are_let_by() {
    demo(
        "",
        &[
            ("ATTUNE_GENERATOR_SERVICE_HOST", "10.0.0.1"),
            ("ATTUNE_GENERATOR_SERVICE_PORT_GRPC", "50051"),
            ("ATTUNE_GENERATOR_PORT", "tcp://10.0.0.1:50051"),
            ("ATTUNE_GENERATOR_PORT_50051_TCP_ADDR", "10.0.0.1"),
            ("ATTUNE_GENERATOR_HEADLESS_SERVICE_HOST", "10.0.0.1"),
        ],
        &[],
    )
    .unwrap();
}

#[test]
fn wrong_types_name_key_and_source() {
    let text = demo("slots = \"many\"", &[], &[]).unwrap_err().to_string();
    assert!(text.contains("slots") && text.contains(".toml"), "{text}");
    let text = demo("", &[("ATTUNE_GENERATOR_SLOTS", "many")], &[]).unwrap_err().to_string();
    assert!(text.contains("ATTUNE_GENERATOR_SLOTS"), "{text}");
    let text = demo("slots = -1", &[], &[]).unwrap_err().to_string();
    assert!(text.contains("slots"), "{text}");
    let text = demo("", &[("ATTUNE_GENERATOR_SERVER__LISTEN", "here")], &[]).unwrap_err().to_string();
    assert!(text.contains("server.listen"), "{text}");
    let text = demo("[log]\nformat = \"xml\"", &[], &[]).unwrap_err().to_string();
    assert!(text.contains("json") && text.contains("log.format"), "{text}");
    let text = demo("server = 3", &[], &[]).unwrap_err().to_string();
    assert!(text.contains("`server`"), "{text}");
    let text = demo("slots = [", &[], &[]).unwrap_err().to_string();
    assert!(text.contains("cannot read"), "{text}");
}

#[test]
fn ranges_name_key_and_limits() {
    let mut server = ServerConfig::default();
    server.validate().unwrap();
    server.drain_seconds = f64::NAN;
    let text = server.validate().unwrap_err().to_string();
    assert!(text.contains("`server.drain_seconds`") && text.contains("0 to 3600"), "{text}");
    let log = LogConfig { filter: "info,=".into(), ..LogConfig::default() };
    assert!(log.validate().unwrap_err().to_string().contains("log.filter"));
}

#[cfg(unix)]
#[test]
fn only_our_variables_must_be_unicode() {
    use std::os::unix::ffi::OsStringExt as _;

    let broken = || OsString::from_vec(vec![b'a', 0xff]);
    let read = |name: OsString, value: OsString| {
        let sane = ("ATTUNE_GENERATOR_SLOTS".into(), "3".into());
        ours([(name, value), sane].into_iter())
    };
    let sane = pairs(&[("ATTUNE_GENERATOR_SLOTS", "3")]);
    assert_eq!(read("PATH".into(), broken()).unwrap(), sane);
    assert_eq!(read(broken(), "x".into()).unwrap(), sane);
    let text = read("ATTUNE_REWARD_MODEL".into(), broken()).unwrap_err().to_string();
    assert!(text.contains("ATTUNE_REWARD_MODEL") && text.contains("Unicode"), "{text}");
    let name = OsString::from_vec([b"ATTUNE_".as_slice(), &[0xff]].concat());
    assert!(read(name, "x".into()).unwrap_err().to_string().contains("ATTUNE_"));
}
