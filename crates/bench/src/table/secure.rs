//! What encryption costs at full load: TLS for clients and mutual TLS between the two services, against a
//! pair that speaks plain text.

use std::{path::Path, time::Duration};

use anyhow::Result;
use attune_proto::generator::v1::generator_service_client::GeneratorServiceClient;
use attune_service::tls::{ClientTls, ClientTlsConfig};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::{
    Settings, Size, half,
    rows::{Key, Results},
    service::{Pair, Service},
    sides::Sides,
};

/// The files do not change meanwhile.
const RELOAD: Duration = Duration::from_secs(3600);
const HOST: &str = "127.0.0.1";
/// The name that the worker knows its generator by.
const GENERATOR: &str = "generator.attune";

pub(super) async fn run(settings: &Settings, results: &mut Results<'_>) -> Result<()> {
    if !settings.wants(Key::Tls) {
        return Ok(());
    }
    results.say("16 streams with TLS and without, on 'small'");
    let folder = tempfile::tempdir()?;
    write_certificates(folder.path())?;
    let file = |name: &str| folder.path().join(name).display().to_string();
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("{key}={value}")];
    let own = |name: &str| {
        let (cert, key) = (file(&format!("{name}.pem")), file(&format!("{name}.key")));
        ["--tls-cert".to_owned(), cert, "--tls-key".to_owned(), key]
    };
    let ca = file("ca.pem");

    let without = Pair::start(settings, Size::Small, half(), &[]).await?;
    let args =
        [&own("worker")[..], &set("server.tls.client_ca", &ca), &set("server.tls.client_names", GENERATOR)]
            .concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let worker = Service::worker(settings, Size::Small, half(), &args).await?;
    let args = [
        &own("generator")[..],
        &set("reward_tls.ca", &ca),
        &set("reward_tls.cert", &file("client.pem")),
        &set("reward_tls.key", &file("client.key")),
    ]
    .concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let encrypted = |service: &Service| service.endpoint.replacen("http://", "https://", 1);
    let generator = Service::generator(settings, Size::Small, half(), &[&encrypted(&worker)], &args).await?;
    let config = ClientTlsConfig { ca: Some(folder.path().join("ca.pem")), ..ClientTlsConfig::default() };
    let tls = ClientTls::load(&config, RELOAD)?;
    let channel = tls.connect(ClientTls::endpoint(&encrypted(&generator))?.tcp_nodelay(true)).await?;

    let mut sides = Sides::default();
    let length = (settings.rounds(11), settings.tokens(96));
    sides.measure(length, &without.client, &GeneratorServiceClient::new(channel)).await?;
    let (plain, encrypted) = sides.speeds();
    let remark = format!(
        "{plain:.1} tokens/s in plain text, {encrypted:.1} by TLS; standard error {:.3}",
        sides.error()
    );
    results.add(Key::Tls, sides.ratio(), &remark);
    Ok(())
}

/// An authority, and what it vouches for: both servers by their address, the generator as a client by name.
fn write_certificates(folder: &Path) -> Result<()> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.join("ca.pem"), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for (name, of) in [("worker", HOST), ("generator", HOST), ("client", GENERATOR)] {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![of.to_owned()])?.signed_by(&key, &issuer)?;
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
