//! Where a server is, and as whom it is called. Pure.

use std::net::{IpAddr, Ipv6Addr};

use crate::Error;

const DEFAULT_PORT: u16 = 50151;
const DEFAULT_HOST: &str = "127.0.0.1";
const HTTPS: &str = "https://";
const HTTP: &str = "http://";
const UNIX: &str = "unix:";

/// An address that tonic takes, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `host:port`, or `unix:/path`.
    pub(crate) address: String,
    /// Whether TLS is spoken.
    pub(crate) tls: bool,
}

impl Target {
    /// Reads `host:port`, `https://host:port` or `unix:/path`. A host without a port gets
    /// Headrace's own, since a web server's would be tonic's default.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        let lower = text.to_ascii_lowercase();
        if let Some(path) = text.strip_prefix(UNIX) {
            if path.trim_start_matches('/').is_empty() {
                return Err(Error::invalid(format!("{text} names no socket; write unix:/path")));
            }
            return Ok(Self { address: text.into(), tls: false });
        }
        let tls = lower.starts_with(HTTPS);
        let scheme = if tls {
            HTTPS.len()
        } else if lower.starts_with(HTTP) {
            HTTP.len()
        } else {
            0
        };
        let host = text[scheme..].trim_end_matches('/');
        let host = if host.is_empty() { DEFAULT_HOST } else { host };
        let address = with_port(host);
        let (name, port) = address.rsplit_once(':').expect("it has a port");
        if !is_host(name) {
            return Err(Error::invalid(format!(
                "{text} is no target; write host:port, https://host:port or unix:/path"
            )));
        }
        if !is_port(port) {
            return Err(Error::invalid(format!(
                "{text} is no target: a port is a number from 1 to 65535"
            )));
        }
        Ok(Self { address, tls })
    }

    /// Whether only this machine can be meant: a Unix socket, or a loopback address.
    pub(crate) fn is_local(&self) -> bool {
        if self.is_unix() {
            return true;
        }
        let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }

    pub(crate) fn is_unix(&self) -> bool {
        self.address.starts_with(UNIX)
    }

    /// As tonic takes it.
    pub(crate) fn uri(&self) -> String {
        match (self.is_unix(), self.tls) {
            (true, _) => self.address.clone(),
            (_, true) => format!("{HTTPS}{}", self.address),
            (_, false) => format!("{HTTP}{}", self.address),
        }
    }
}

fn with_port(host: &str) -> String {
    match host.matches(':').count() {
        _ if host.starts_with('[') && host.contains("]:") => host.into(),
        0 => format!("{host}:{DEFAULT_PORT}"),
        1 => host.into(),
        _ if host.starts_with('[') => format!("{host}:{DEFAULT_PORT}"),
        _ => format!("[{host}]:{DEFAULT_PORT}"), // an IPv6 address without its brackets
    }
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (bare, _) = address.split_once('%').unwrap_or((address, "")); // without its zone
        return bare.parse::<Ipv6Addr>().is_ok();
    }
    let foreign = |c: char| c.is_whitespace() || "/@?#:[]".contains(c);
    !host.is_empty() && !host.contains(foreign)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0)
}

/// The token as it is sent: what a file or a header may have around it is left out.
pub(crate) fn secret(token: &str) -> Result<&str, Error> {
    let token = token.trim();
    let token = match token.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("bearer ") => token[7..].trim(),
        _ => token,
    };
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token);
    }
    Err(Error::invalid("the token has characters that none has; look at HEADRACE_TOKEN"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> String {
        Target::parse(text).unwrap().address
    }

    #[test]
    fn a_host_without_a_port_gets_headraces() {
        assert_eq!(address("gpu.example"), "gpu.example:50151");
        assert_eq!(address("gpu.example:7"), "gpu.example:7");
        assert_eq!(address("::1"), "[::1]:50151");
        assert_eq!(address("[::1]"), "[::1]:50151");
        assert_eq!(address("[::1]:7"), "[::1]:7");
        assert_eq!(address("https://"), "127.0.0.1:50151");
        assert_eq!(address(" HTTPS://gpu.example/ "), "gpu.example:50151");
        assert_eq!(address("unix:/run/headrace.sock"), "unix:/run/headrace.sock");
    }

    #[test]
    fn the_scheme_says_whether_there_is_tls() {
        assert!(Target::parse("Https://a").unwrap().tls);
        assert!(!Target::parse("http://a").unwrap().tls);
        assert_eq!(Target::parse("https://a:1").unwrap().uri(), "https://a:1");
        assert_eq!(Target::parse("a:1").unwrap().uri(), "http://a:1");
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "https://a/path",
            "dns:///a",
            "a b",
            "user@a",
            "unix:",
            "unix:///",
            "a:99999",
            "a:65536",
            "a:0",
            "a:+1",
            "a:abc",
            "a:",
            ":7",
            "https://a:99999",
            "[::1]:99999",
            "[a]:7",
            "[a]:7]:8",
            "a:7:8",
        ] {
            let error = Target::parse(text).unwrap_err();
            assert_eq!(error.reason_name(), "INVALID_REQUEST", "{text}");
            assert!(error.message().contains(text), "{error}");
        }
    }

    #[test]
    fn this_machine_is_known_by_its_addresses() {
        for text in ["localhost", "LOCALHOST:1", "127.9.9.9:1", "::1", "[::1]:7", "unix:/a"] {
            assert!(Target::parse(text).unwrap().is_local(), "{text}");
        }
        for text in ["10.0.0.1", "localhost.example", "0.0.0.0:1", "[::2]:7", "127.0.0.1.example"] {
            assert!(!Target::parse(text).unwrap().is_local(), "{text}");
        }
    }

    #[test]
    fn a_token_is_sent_without_what_is_around_it() {
        assert_eq!(secret(" hr_abc\n").unwrap(), "hr_abc");
        assert_eq!(secret("Bearer hr_abc").unwrap(), "hr_abc");
        assert_eq!(secret("").unwrap(), "");
        for token in ["a b", "a\u{e9}", "a\tb", "öäü…ß"] {
            assert!(secret(token).is_err(), "{token}");
        }
    }
}
