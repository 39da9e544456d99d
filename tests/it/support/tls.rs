//! Certificates that a test makes for itself, and servers that use them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use tidegate::Tls;

use super::server::{Server, free_port};

fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate chain and its private key, as PEM.
pub(crate) struct Certificate {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A distinguished name of its own, as CAs have.
        let name = format!("a CA of tests, {}", number());
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate for a server on this machine.
    pub(crate) fn server(&self) -> Certificate {
        self.sign(Self::params(SanType::IpAddress(IpAddr::V4(
            Ipv4Addr::LOCALHOST,
        ))))
    }

    /// A certificate for a server of this name.
    pub(crate) fn named(&self, name: &str) -> Certificate {
        let name = SanType::DnsName(name.try_into().expect("a name"));
        self.sign(Self::params(name))
    }

    /// A certificate for a server on this machine that expired long ago.
    pub(crate) fn expired(&self) -> Certificate {
        let mut params = Self::params(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.sign(params)
    }

    fn params(name: SanType) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params
    }

    fn sign(&self, params: CertificateParams) -> Certificate {
        let key = KeyPair::generate().expect("a key");
        let chain = params.signed_by(&key, &self.issuer).expect("a certificate");
        Certificate {
            chain: chain.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Client settings that trust this authority alone.
    pub(crate) fn trusted(&self) -> Tls {
        Tls::new().ca(&self.pem)
    }
}

/// Whether a server asks its clients for a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientCerts {
    NotAsked,
    /// One that the server's CA has signed.
    Required,
}

/// Files and settings of a server with TLS. The files are removed with this value.
pub(crate) struct CertFiles {
    dir: PathBuf,
    pub(crate) port: u16,
    clients: ClientCerts,
}

impl CertFiles {
    pub(crate) fn new(authority: &Authority, server: &Certificate, clients: ClientCerts) -> Self {
        let name = format!("tidegate-tls-{}-{}", std::process::id(), number());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a directory for certificates");
        for (name, pem) in [
            ("ca.pem", &authority.pem),
            ("server.pem", &server.chain),
            ("server.key", &server.key),
        ] {
            std::fs::write(dir.join(name), pem).expect("a file");
        }
        Self {
            dir,
            port: free_port(),
            clients,
        }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        let path = self.dir.join(name);
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// The settings as on a command line.
    pub(crate) fn settings(&self) -> Vec<String> {
        let clients = match self.clients {
            ClientCerts::NotAsked => "no",
            ClientCerts::Required => "yes",
        };
        [
            ("--tls-port", self.port.to_string()),
            ("--tls-ca-cert-file", self.path("ca.pem")),
            ("--tls-cert-file", self.path("server.pem")),
            ("--tls-key-file", self.path("server.key")),
            ("--tls-auth-clients", clients.to_owned()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
    }
}

impl Drop for CertFiles {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A server with two ports: one without TLS, through which the test looks in, and one with TLS.
pub(crate) struct TlsServer {
    pub(crate) plain: Server,
    pub(crate) cert_files: CertFiles,
}

impl TlsServer {
    pub(crate) fn start(authority: &Authority, server: &Certificate, clients: ClientCerts) -> Self {
        let cert_files = CertFiles::new(authority, server, clients);
        let plain = start(&cert_files, &[], Server::start_with);
        Self { plain, cert_files }
    }

    pub(crate) fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.cert_files.port)
    }
}

/// Starts a server with these certificates.
pub(crate) fn start(
    cert_files: &CertFiles,
    more: &[&str],
    start: impl FnOnce(&[&str]) -> Server,
) -> Server {
    assert_tls();
    let settings = cert_files.settings();
    let words: Vec<&str> = settings
        .iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect();
    start(&words)
}

/// Asserts that the server is built with TLS: given a TLS port and no certificate, it ends with an
/// error that tells whether it knows the setting or lacks the certificate.
fn assert_tls() {
    let binary = std::env::var("TIDEGATE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
    let port = free_port().to_string();
    let output = Command::new(&binary)
        .args(["--port", "0", "--tls-port", &port])
        .output()
        .unwrap_or_else(|error| panic!("{binary}: {error}"));
    let output = [output.stdout, output.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    assert!(
        output.contains("Failed to configure TLS"),
        "{binary} is built without TLS, which these tests need: Debian's and Ubuntu's redis-server has \
         it, Redis itself after `make BUILD_TLS=yes`. It printed: {output}"
    );
}
