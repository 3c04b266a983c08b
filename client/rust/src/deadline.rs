//! Until when a call may take.

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use tokio::time::Instant;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The header has room for eight digits.
const MOST: u128 = 99_999_999;

/// A call's own timeout, as `tonic::Request::set_timeout` leaves it in the headers.
pub(crate) fn timeout_of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "n" => Duration::from_nanos(number),
        "u" => Duration::from_micros(number),
        "m" => Duration::from_millis(number),
        "S" => Duration::from_secs(number),
        "M" => Duration::from_secs(number.checked_mul(60)?),
        "H" => Duration::from_secs(number.checked_mul(3600)?),
        _ => return None,
    })
}

/// When a call ends that begins now. None: never, as far as clocks reach.
pub(crate) fn after(timeout: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(timeout?)
}

/// Tells the server what is left.
pub(crate) fn tell(headers: &mut HeaderMap, deadline: Option<Instant>) {
    headers.remove(TIMEOUT);
    let Some(left) = deadline.map(|at| at.saturating_duration_since(Instant::now())) else {
        return;
    };
    let (micros, millis, seconds) = (left.as_micros(), left.as_millis(), left.as_secs());
    let text = if micros <= MOST {
        format!("{micros}u")
    } else if millis <= MOST {
        format!("{millis}m")
    } else if u128::from(seconds) <= MOST {
        format!("{seconds}S")
    } else {
        return; // Three years: as good as none.
    };
    headers.insert(TIMEOUT, HeaderValue::from_str(&text).expect("digits and a unit"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_s_own_timeout_is_read_back() {
        for timeout in [
            Duration::ZERO,
            Duration::from_nanos(7),
            Duration::from_millis(1500),
            Duration::from_secs(3600),
            Duration::from_secs(9_000_000_000),
        ] {
            let mut request = tonic::Request::new(());
            request.set_timeout(timeout);
            let headers = request.metadata().clone().into_headers();
            let read = timeout_of(&headers).unwrap();
            assert!(read <= timeout && read + Duration::from_secs(60) > timeout, "{timeout:?}");
        }
        assert_eq!(timeout_of(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn the_server_is_told_what_is_left() {
        let mut headers = HeaderMap::new();
        for seconds in [0, 30, 86_400, 90_000_000] {
            tell(&mut headers, after(Some(Duration::from_secs(seconds))));
            let told = timeout_of(&headers).unwrap();
            assert!(told <= Duration::from_secs(seconds));
            assert!(told + Duration::from_secs(2) > Duration::from_secs(seconds), "{told:?}");
        }
        tell(&mut headers, after(Some(Duration::MAX)));
        assert!(headers.is_empty());
    }
}
