//! Who it is that tells: the attributes of the process.

use opentelemetry::{Key, KeyValue};
use opentelemetry_sdk::{
    Resource,
    trace::{IdGenerator as _, RandomIdGenerator},
};

use super::TelemetryConfig;

/// The attributes of this process. The configuration goes before the standard variables (OTEL_SERVICE_NAME,
/// OTEL_RESOURCE_ATTRIBUTES), and these before what is known here.
pub(super) fn of(service: &str, config: &TelemetryConfig) -> Resource {
    // A name of its own for every start: two of one service are told apart by it.
    let instance = RandomIdGenerator::default().new_trace_id().to_string();
    let known = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance),
    ];
    let said = Resource::builder().build();
    let named = said.get_ref(&Key::new("service.name")).map(|name| name.as_str().into_owned());
    let named =
        named.filter(|name| !name.starts_with("unknown_service")).unwrap_or_else(|| service.to_owned());
    let name = config.service_name.clone().unwrap_or(named);
    let said = said.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect::<Vec<_>>();
    let own = config.attributes.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty()
        .with_attributes(known)
        .with_attributes(said)
        .with_attributes(own)
        .with_service_name(name)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_its_names() {
        let value =
            |resource: &Resource, key: &'static str| resource.get(&Key::new(key)).unwrap().to_string();
        let config = TelemetryConfig {
            attributes: [("deployment.environment.name".to_owned(), "test".to_owned())].into(),
            ..TelemetryConfig::default()
        };
        let (a, b) = (of("attune-reward", &config), of("attune-reward", &config));
        assert_eq!(value(&a, "service.name"), "attune-reward");
        assert_eq!(value(&a, "deployment.environment.name"), "test");
        assert_ne!(value(&a, "service.instance.id"), value(&b, "service.instance.id"));
        let named = TelemetryConfig { service_name: Some("rewards-eu".into()), ..config };
        assert_eq!(value(&of("attune-reward", &named), "service.name"), "rewards-eu");
    }
}
