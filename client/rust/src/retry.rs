//! When a unary call is made again. Pure.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

/// Attempts in all.
pub(crate) const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const JITTER: f64 = 0.2;
const UNAVAILABLE: &[u8] = b"14";

/// Whether a call's first headers are already its end, and say UNAVAILABLE.
pub(crate) fn is_unavailable(status: StatusCode, headers: &HeaderMap) -> bool {
    match headers.get("grpc-status") {
        Some(code) => code.as_bytes() == UNAVAILABLE,
        // A proxy answers for a server that it does not reach.
        None => matches!(status.as_u16(), 429 | 502 | 503 | 504),
    }
}

/// How long to wait after the attempt of this number, the first being 0; None: there is no other.
/// `random` is from 0 to 1.
pub(crate) fn wait(attempt: u32, headers: Option<&HeaderMap>, random: f64) -> Option<Duration> {
    if attempt + 1 >= ATTEMPTS {
        return None;
    }
    if let Some(said) = headers.and_then(|headers| headers.get("grpc-retry-pushback-ms")) {
        // What cannot be read or is negative says no, as gRPC has it.
        return said.to_str().ok()?.parse().ok().map(Duration::from_millis);
    }
    let jitter = 1.0 + JITTER * (2.0 * random - 1.0);
    Some(FIRST_WAIT.mul_f64(f64::from(1 << attempt) * jitter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([("grpc-retry-pushback-ms".parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn waits_double_and_end() {
        let waits: Vec<_> = (0..5).map(|attempt| wait(attempt, None, 0.5)).collect();
        let [a, b, c] = [100, 200, 400].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(waits, [a, b, c, None, None]);
        assert_eq!(wait(0, None, 0.0), Some(Duration::from_millis(80)));
        assert_eq!(wait(2, None, 1.0), Some(Duration::from_millis(480)));
    }

    #[test]
    fn the_server_has_its_say() {
        assert_eq!(wait(0, Some(&said("1500")), 0.5), Some(Duration::from_millis(1500)));
        assert_eq!(wait(0, Some(&said("0")), 0.5), Some(Duration::ZERO));
        assert_eq!(wait(0, Some(&said("-1")), 0.5), None);
        assert_eq!(wait(0, Some(&said("soon")), 0.5), None);
        assert_eq!(wait(3, Some(&said("5")), 0.5), None);
    }

    #[test]
    fn a_status_goes_before_http() {
        let status = |code: &'static str| {
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())])
        };
        assert!(is_unavailable(StatusCode::OK, &status("14")));
        assert!(!is_unavailable(StatusCode::OK, &status("8")));
        assert!(!is_unavailable(StatusCode::SERVICE_UNAVAILABLE, &status("8")));
        assert!(is_unavailable(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new()));
        assert!(!is_unavailable(StatusCode::NOT_FOUND, &HeaderMap::new()));
        assert!(!is_unavailable(StatusCode::OK, &HeaderMap::new()));
    }
}
