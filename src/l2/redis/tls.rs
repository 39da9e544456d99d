//! TLS: which certificates to trust, and which one to show.

use std::fmt;
use std::sync::Arc;

use fred::rustls::client::WebPkiServerVerifier;
use fred::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use fred::rustls::crypto::{CryptoProvider, ring};
use fred::rustls::pki_types::pem::PemObject;
use fred::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use fred::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use fred::types::config::TlsConnector;

use crate::error::BuildError;

/// How a [`Redis`](crate::Redis) handle uses TLS: see
/// [`RedisBuilder::tls`](crate::RedisBuilder::tls).
///
/// TLS 1.2 and 1.3, through rustls. The server's certificate must be valid now, be signed by a
/// trusted CA, and bear the host's name in the URL. If the URL has an IP address, the certificate
/// must hold that address. rustls reads the alternative names (SAN) alone, not the common name.
///
/// ```no_run
/// # use tidegate::{Redis, Tls};
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::new()
///     .ca(std::fs::read("/etc/redis/ca.pem")?)
///     .client_certificate(std::fs::read("/etc/app/app.pem")?, std::fs::read("/etc/app/app.key")?);
/// let redis = Redis::builder("rediss://redis.internal:6380").tls(tls).connect().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use = "it is a setting of `RedisBuilder`"]
pub struct Tls {
    ca: Option<Arc<[u8]>>,
    client: Option<ClientCertificate>,
    name_check: NameCheck,
}

/// A certificate with its chain, and its key, as PEM.
#[derive(Clone)]
struct ClientCertificate {
    chain: Arc<[u8]>,
    key: Arc<[u8]>,
}

/// Which name the server's certificate must bear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum NameCheck {
    /// The name in the URL. In a cluster and with sentinels: the name that these announce.
    #[default]
    Host,
    Given(String),
    Any,
}

impl Tls {
    /// The default: the system's CAs, no client certificate, the host's name in the URL.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts these CAs and no others: one or more certificates, in PEM.
    ///
    /// Default: the CAs of the system, or those of the file or folders in the variables
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    pub fn ca(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.ca = Some(pem.as_ref().into());
        self
    }

    /// Shows this certificate to a server that asks for one (mTLS). The chain begins with the
    /// certificate, and goes on to the server's CA, in PEM. The private key (PKCS#8, PKCS#1 or
    /// SEC1) is in PEM, not encrypted.
    ///
    /// Default: none.
    pub fn client_certificate(
        mut self,
        chain_pem: impl AsRef<[u8]>,
        key_pem: impl AsRef<[u8]>,
    ) -> Self {
        self.client = Some(ClientCertificate {
            chain: chain_pem.as_ref().into(),
            key: key_pem.as_ref().into(),
        });
        self
    }

    /// The name that the certificate of every server must bear, instead of the host's name in the
    /// URL. This is for tunnels, and for clusters and sentinels that announce addresses which are
    /// not in certificates.
    ///
    /// Default: the host's name.
    pub fn server_name(mut self, name: &str) -> Self {
        self.name_check = NameCheck::Given(name.to_owned());
        self
    }

    /// Accepts a certificate with any name. Use it only with a [`ca`](Self::ca) of your own that
    /// signs for your Redis alone: another owner of such a certificate could take the server's
    /// place.
    ///
    /// Default: names are checked.
    pub fn any_server_name(mut self) -> Self {
        self.name_check = NameCheck::Any;
        self
    }

    /// Reads the system's CAs, unless a [`ca`](Self::ca) was given.
    pub(super) fn connector(&self) -> Result<TlsConnector, BuildError> {
        if self.name_check == NameCheck::Any && self.ca.is_none() {
            return Err(BuildError::Clash {
                setter: "any_server_name",
                value: String::new(),
                other: "ca",
                other_value: "the system's".to_owned(),
                why: "anybody with any certificate could take the server's place",
            });
        }
        // The provider is named, because rustls panics if it must choose among several.
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(self.roots()?);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| refuse(error.to_string()))?;
        let builder = match self.verifier(&roots, provider)? {
            None => builder.with_root_certificates(roots),
            Some(verifier) => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier)),
        };
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(client) => {
                let chain = certificates("client_certificate", &client.chain)?;
                // The error is not repeated: it may hold the key.
                let key = PrivateKeyDer::from_pem_slice(&client.key).map_err(|_| {
                    refuse(
                        "client_certificate: there is no private key in PEM, or an encrypted one",
                    )
                })?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| refuse(format!("client_certificate: {error}")))?
            }
        };
        Ok(config.into())
    }

    fn roots(&self) -> Result<RootCertStore, BuildError> {
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            for certificate in certificates("ca", ca)? {
                let added = roots.add(certificate);
                added.map_err(|error| refuse(format!("ca: {error}")))?;
            }
            return Ok(roots);
        }
        // If one of them cannot be read, the others are used.
        let system = fred::rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err(refuse(
                "the system has no CA certificates: install them (the package ca-certificates), \
                 or name one with `Tls::ca`",
            ));
        }
        Ok(roots)
    }

    fn verifier(
        &self,
        roots: &Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Option<Verifier>, BuildError> {
        let name = match &self.name_check {
            NameCheck::Host => return Ok(None),
            NameCheck::Any => None,
            NameCheck::Given(name) => match ServerName::try_from(name.clone()) {
                Ok(name) => Some(name),
                Err(_) => {
                    return Err(BuildError::OutOfRange {
                        setter: "server_name",
                        value: format!("{name:?}"),
                        allowed: "a DNS name or an IP address",
                    });
                }
            },
        };
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider);
        let inner = inner.build().map_err(|error| refuse(error.to_string()))?;
        Ok(Some(Verifier { inner, name }))
    }
}

fn refuse(reason: impl Into<String>) -> BuildError {
    BuildError::Tls {
        reason: reason.into(),
    }
}

fn certificates(setter: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(refuse(format!("{setter}: there is no certificate in PEM"))),
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("own_ca", &self.ca.is_some())
            .field("client_certificate", &self.client.is_some())
            .field("server_name", &self.name_check)
            .finish()
    }
}

/// Checks certificates as rustls does, except for the name.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    /// `None`: any name.
    name: Option<ServerName<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let name = self.name.as_ref().unwrap_or(server_name);
        let inner = &self.inner;
        match inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now) {
            // rustls checks the name last: all other checks have passed.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.name.is_none() => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
