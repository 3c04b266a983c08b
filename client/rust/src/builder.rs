use std::fmt;
use std::time::Duration;

use http::header::HeaderValue;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::target::{Target, secret};
use crate::{Channel, Client, Error};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("headrace-rust/", env!("CARGO_PKG_VERSION"));
const PEM: &[u8] = b"-----BEGIN ";

/// Says how a [`Client`] reaches its server. What is not said, the environment says.
#[derive(Clone, Default)]
#[must_use]
pub struct Builder {
    target: Option<String>,
    token: Option<String>,
    tls_ca: Option<Vec<u8>>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    timeout: Option<Duration>,
    alone: bool,
}

impl Builder {
    /// `host:port` without encryption, `https://host:port` for TLS, or `unix:/path`. Otherwise
    /// `HEADRACE_HOST`, else 127.0.0.1:50151. Without a port: 50151.
    pub fn target(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// What the server knows the caller by. Otherwise `HEADRACE_TOKEN`, if it is set; "": none.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The authorities to trust, in PEM; only with `https://`. Otherwise those in the file that
    /// `HEADRACE_TLS_CA` names, else the system's.
    pub fn tls_ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls_ca = Some(pem.into());
        self
    }

    /// The client's own certificate and its private key, in PEM; only with `https://`. Otherwise
    /// those in the files that `HEADRACE_CLIENT_CERT` and `HEADRACE_CLIENT_KEY` name, if any.
    pub fn client_certificate(mut self, pem: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.certificate = Some((pem.into(), key.into()));
        self
    }

    /// How long a call may take that says nothing itself; of a stream, the whole of it. Otherwise
    /// the client sets no limit, and the server ends a call after an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Reads nothing from the environment.
    pub fn ignore_environment(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Makes the client. It connects at its first call.
    ///
    /// # Errors
    ///
    /// `InvalidRequest`: the target is none, a token would travel in the clear to another machine,
    /// or certificates cannot be read or used. Code `FailedPrecondition`: not called within a Tokio
    /// runtime.
    pub fn build(self) -> Result<Client, Error> {
        if self.alone {
            return self.build_with(|_| None);
        }
        self.build_with(|name| std::env::var(name).ok())
    }

    fn build_with(self, environment: impl Fn(&str) -> Option<String>) -> Result<Client, Error> {
        let environment = |name: &str| environment(name).filter(|value| !value.is_empty());
        let said = self.target.clone().or_else(|| environment("HEADRACE_HOST"));
        let target = Target::parse(&said.unwrap_or_default())?;
        let endpoint = self.endpoint(&target, &environment)?;
        let token = match &self.token {
            Some(token) => token.clone(),
            None => environment("HEADRACE_TOKEN").unwrap_or_default(),
        };
        let authorization = authorization(&token, &target)?;
        if tokio::runtime::Handle::try_current().is_err() {
            let message = "a client is made within a Tokio runtime, and there is none here";
            return Err(Error::new(Code::FailedPrecondition, message));
        }
        Ok(Client::over(Channel {
            transport: endpoint.connect_lazy(),
            target: target.address.into(),
            authorization,
            timeout: self.timeout,
        }))
    }

    fn endpoint(
        &self,
        target: &Target,
        environment: &impl Fn(&str) -> Option<String>,
    ) -> Result<Endpoint, Error> {
        let address = &target.address;
        let endpoint = Endpoint::from_shared(target.uri())
            .and_then(|endpoint| endpoint.user_agent(USER_AGENT))
            .map_err(|error| Error::invalid(format!("{address} is no target: {}", told(&error))))?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        if target.tls {
            let tls = self.tls(environment)?;
            return endpoint.tls_config(tls).map_err(|error| {
                Error::invalid(format!("the certificates cannot be used: {}", told(&error)))
            });
        }
        if self.tls_ca.is_some() || self.certificate.is_some() {
            return Err(Error::invalid(format!(
                "certificates are given, and {address} would be spoken to in the clear; write \
                 https://{address}, or leave them out"
            )));
        }
        if environment("HEADRACE_TLS_CA").is_some() && !target.is_local() {
            return Err(Error::invalid(format!(
                "HEADRACE_TLS_CA is set, and {address} would be spoken to in the clear; write \
                 https://{address}, or unset it"
            )));
        }
        Ok(endpoint)
    }

    fn tls(&self, environment: &impl Fn(&str) -> Option<String>) -> Result<ClientTlsConfig, Error> {
        let read = |name| environment(name).map(|path| read(name, &path)).transpose();
        let authority = match &self.tls_ca {
            Some(pem) => Some(pem.clone()),
            None => read("HEADRACE_TLS_CA")?,
        };
        let certificate = match &self.certificate {
            Some(pair) => Some(pair.clone()),
            None => match (read("HEADRACE_CLIENT_CERT")?, read("HEADRACE_CLIENT_KEY")?) {
                (Some(pem), Some(key)) => Some((pem, key)),
                (None, None) => None,
                _ => {
                    let names = "HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY";
                    return Err(Error::invalid(format!("{names} go together; set both")));
                }
            },
        };
        let tls = match authority {
            Some(pem) => {
                let pem = checked(pem, "the authorities' certificates")?;
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        Ok(match certificate {
            Some((pem, key)) => {
                let pem = checked(pem, "the client's certificate")?;
                tls.identity(Identity::from_pem(pem, checked(key, "the client's key")?))
            }
            None => tls,
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither a token nor a key belongs into a log.
        f.debug_struct("Builder")
            .field("target", &self.target)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

fn authorization(token: &str, target: &Target) -> Result<Option<HeaderValue>, Error> {
    let token = secret(token)?;
    if token.is_empty() {
        return Ok(None);
    }
    let address = &target.address;
    if !target.tls && !target.is_local() {
        return Err(Error::invalid(format!(
            "the token would travel to {address} in the clear; connect to https://{address}, or \
             unset HEADRACE_TOKEN"
        )));
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).expect("visible characters");
    value.set_sensitive(true);
    Ok(Some(value))
}

fn read(name: &str, path: &str) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| {
        Error::invalid(format!("{name} names a file that cannot be read: {path}: {error}"))
    })
}

/// TLS would take what has nothing of PEM in it for an empty list.
fn checked(pem: Vec<u8>, what: &str) -> Result<Vec<u8>, Error> {
    if pem.windows(PEM.len()).any(|window| window == PEM) {
        return Ok(pem);
    }
    Err(Error::invalid(format!("{what} are not in PEM")))
}

/// An error with what led to it.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(builder: Builder, environment: &[(&str, &str)]) -> Result<Client, Error> {
        builder.build_with(|name| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn refused(builder: Builder, environment: &[(&str, &str)]) -> String {
        let error = build(builder, environment).unwrap_err();
        assert_eq!(error.reason_name(), "INVALID_REQUEST", "{error}");
        error.message().to_owned()
    }

    #[tokio::test]
    async fn what_is_not_said_the_environment_says() {
        let host = [("HEADRACE_HOST", "gpu.example:7")];
        assert_eq!(build(Builder::default(), &host).unwrap().target(), "gpu.example:7");
        let said = Builder::default().target("localhost:8");
        assert_eq!(build(said, &host).unwrap().target(), "localhost:8");
        let empty = [("HEADRACE_HOST", "")];
        assert_eq!(build(Builder::default(), &empty).unwrap().target(), "127.0.0.1:50151");
    }

    #[tokio::test]
    async fn a_token_never_travels_in_the_clear_to_another_machine() {
        let token = [("HEADRACE_TOKEN", "hr_abc")];
        let far = || Builder::default().target("gpu.example");
        assert!(refused(far(), &token).contains("https://gpu.example:50151"));
        assert!(refused(far().token("hr_abc"), &[]).contains("in the clear"));
        assert!(build(far().token(""), &token).is_ok());
        for near in ["localhost:1", "unix:/run/headrace.sock", "[::1]:5"] {
            assert!(build(Builder::default().target(near), &token).is_ok(), "{near}");
        }
    }

    #[tokio::test]
    async fn certificates_without_tls_are_refused() {
        let builder = || Builder::default().target("localhost:1");
        assert!(refused(builder().tls_ca("x"), &[]).contains("https://localhost:1"));
        assert!(refused(builder().client_certificate("x", "y"), &[]).contains("https://"));
        let authority = [("HEADRACE_TLS_CA", "/ca.crt")];
        assert!(build(builder(), &authority).is_ok());
        let far = Builder::default().target("gpu.example");
        assert!(refused(far, &authority).contains("HEADRACE_TLS_CA is set"));
    }

    #[tokio::test]
    async fn files_that_are_none_are_named() {
        let builder = || Builder::default().target("https://gpu.example");
        let missing = [("HEADRACE_TLS_CA", "/nowhere/ca.crt")];
        assert!(refused(builder(), &missing).contains("/nowhere/ca.crt"));
        assert!(refused(builder().tls_ca("no PEM"), &[]).contains("not in PEM"));
        let half = [("HEADRACE_CLIENT_CERT", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))];
        assert!(refused(builder(), &half).contains("go together"));
    }

    #[test]
    fn without_a_runtime_there_is_no_client() {
        let error = build(Builder::default(), &[]).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
    }

    #[test]
    fn no_secret_is_shown() {
        let builder = Builder::default().token("hr_abc").client_certificate("pem", "hr_abc");
        assert!(!format!("{builder:?}").contains("hr_abc"));
    }
}
