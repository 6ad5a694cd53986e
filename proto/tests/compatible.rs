//! The protos change only in ways that the last release's peers understand. `released.binpb` holds that
//! release's descriptors (`buf breaking` compares with it too); after a release it is replaced by
//! `descriptors.bin` of the build.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that fails should say where

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, ServiceDescriptorProto};

const RELEASED: &[u8] = include_bytes!("../released.binpb");

/// All that a peer relies on, by its full name.
fn promises(set: &[u8]) -> BTreeMap<String, String> {
    let set = FileDescriptorSet::decode(set).unwrap();
    let mut all = BTreeMap::new();
    for file in &set.file {
        let package = file.package();
        file.message_type.iter().for_each(|m| message(package, m, &mut all));
        file.enum_type.iter().for_each(|e| enumeration(package, e, &mut all));
        file.service.iter().for_each(|s| service(package, s, &mut all));
    }
    all
}

fn message(parent: &str, message: &DescriptorProto, all: &mut BTreeMap<String, String>) {
    let name = format!("{parent}.{}", message.name());
    for field in &message.field {
        let kind = (field.r#type(), field.type_name(), field.label(), field.proto3_optional());
        let oneof = field
            .oneof_index
            .filter(|_| !field.proto3_optional())
            .map(|i| message.oneof_decl[i as usize].name());
        all.insert(format!("{name} = {}", field.number()), format!("{} {kind:?} {oneof:?}", field.name()));
    }
    message.nested_type.iter().for_each(|m| self::message(&name, m, all));
    message.enum_type.iter().for_each(|e| enumeration(&name, e, all));
}

fn enumeration(parent: &str, enumeration: &EnumDescriptorProto, all: &mut BTreeMap<String, String>) {
    for value in &enumeration.value {
        all.insert(format!("{parent}.{} = {}", enumeration.name(), value.number()), value.name().to_owned());
    }
}

fn service(parent: &str, service: &ServiceDescriptorProto, all: &mut BTreeMap<String, String>) {
    for method in &service.method {
        let streams = (method.client_streaming(), method.server_streaming());
        let promise = format!("{} -> {} {streams:?}", method.input_type(), method.output_type());
        all.insert(format!("{parent}.{}/{}", service.name(), method.name()), promise);
    }
}

#[test]
fn what_the_last_release_relies_on_is_still_there() {
    let (released, now) = (promises(RELEASED), promises(attune_proto::DESCRIPTORS));
    assert!(released.len() > 100, "{}", released.len());
    for (name, promise) in &released {
        assert_eq!(now.get(name), Some(promise), "{name} has changed: peers one release apart break");
    }
}
