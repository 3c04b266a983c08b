//! When a unary call is made again. Pure.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

/// Attempts in all.
pub(crate) const ATTEMPTS: u32 = 4;
const FIRST_WAIT: Duration = Duration::from_millis(100);
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
/// `random`: any number.
pub(crate) fn wait(attempt: u32, headers: Option<&HeaderMap>, random: u64) -> Option<Duration> {
    if attempt + 1 >= ATTEMPTS {
        return None;
    }
    if let Some(said) = headers.and_then(|headers| headers.get("grpc-retry-pushback-ms")) {
        // What cannot be read or is negative says no, as gRPC has it.
        return said.to_str().ok()?.parse().ok().map(Duration::from_millis);
    }
    // Give or take a fifth, so that those who were refused together do not come back together.
    let wait = FIRST_WAIT * (1 << attempt);
    Some(wait * 4 / 5 + wait * 2 / 5 * u32::try_from(random % 101).unwrap_or(0) / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([("grpc-retry-pushback-ms".parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn waits_double_and_end() {
        let waits: Vec<_> = (0..5).map(|attempt| wait(attempt, None, 50)).collect();
        let [a, b, c] = [100, 200, 400].map(|ms| Some(Duration::from_millis(ms)));
        assert_eq!(waits, [a, b, c, None, None]);
        assert_eq!(wait(0, None, 101), Some(Duration::from_millis(80)));
        assert_eq!(wait(2, None, 100), Some(Duration::from_millis(480)));
    }

    #[test]
    fn the_server_has_its_say() {
        assert_eq!(wait(0, Some(&said("1500")), 50), Some(Duration::from_millis(1500)));
        assert_eq!(wait(0, Some(&said("0")), 50), Some(Duration::ZERO));
        assert_eq!(wait(0, Some(&said("-1")), 50), None);
        assert_eq!(wait(0, Some(&said("soon")), 50), None);
        assert_eq!(wait(3, Some(&said("5")), 50), None);
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
