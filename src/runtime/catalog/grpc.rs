//! A check that asks a gRPC server for its health: grpc.health.v1.Health/Check. A message is a byte that says whether it is
//! compressed, its length, and what it holds; the question's first field is the service, the answer's the status, of which 1 is
//! SERVING.

use crate::model::catalog::{GrpcCheck, MAX_OUTPUT};
use crate::model::units::{self, Bytes};
use crate::network::{Network, Request};

/// Whether it says SERVING, of itself or of one of its services; an error says what it says instead.
pub async fn health(network: &dyn Network, grpc: &GrpcCheck, timeout: units::Duration) -> Result<(), String> {
    let name = grpc.service.as_bytes();
    let mut message = Vec::new();
    if !name.is_empty() {
        message.push(0x0a);
        let mut length = name.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(name);
    }
    let length = u32::try_from(message.len()).unwrap_or_default();
    let body = [&[0], &length.to_be_bytes()[..], &message].concat();
    let scheme = if grpc.tls { "https" } else { "http" };
    let headers = [("content-type", "application/grpc"), ("te", "trailers")];
    let request = Request {
        method: "POST".into(),
        url: format!("{scheme}://{}/grpc.health.v1.Health/Check", grpc.address),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        body: Some(body),
        timeout,
        max_body: Bytes(MAX_OUTPUT as u64),
        cut_off: true,
        any_certificate: grpc.tls_skip_verify,
        http2: true,
    };
    let answer = network.fetch(request).await.map_err(|error| error.to_string())?;
    let header = |wanted: &str| {
        let found = answer.headers.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    };
    if answer.status != 200 {
        return Err(format!("status {} of HTTP: no gRPC server", answer.status));
    }
    // Without a message the server says why in place of one.
    if let Some(code) = header("grpc-status").filter(|code| code != "0") {
        let said = header("grpc-message").unwrap_or_default();
        return Err(match code.as_str() {
            "5" => "the server does not know that service (NOT_FOUND)".to_owned(),
            "12" => "the server does not tell its health (UNIMPLEMENTED)".to_owned(),
            code => format!("status {code} of gRPC {said}").trim_end().to_owned(),
        });
    }
    match answer.body.get(5..).map(health_status) {
        Some(1) => Ok(()),
        Some(2) => Err("NOT_SERVING".into()),
        Some(3) => Err("SERVICE_UNKNOWN".into()),
        Some(_) => Err("UNKNOWN".into()),
        None => Err("the server does not answer the question".into()),
    }
}

// The first field, a number; 0 where it is left out, as 0 is.
fn health_status(message: &[u8]) -> u64 {
    let Some((0x08, rest)) = message.split_first() else { return 0 };
    let end = rest.iter().take(9).position(|byte| byte & 0x80 == 0).unwrap_or_default();
    rest.iter().take(end + 1).rev().fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_first_field() {
        for (message, expected) in [
            (&[8, 1][..], 1),
            (&[8, 2, 9, 9], 2),
            (&[], 0),
            (&[8], 0),
            (&[0x10, 1], 0),
            (&[8, 0x80, 1], 128),
            (&[8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 127),
        ] {
            assert_eq!(health_status(message), expected, "{message:?}");
        }
    }
}
