//! What both services share: configuration, telemetry, health, shutdown.
