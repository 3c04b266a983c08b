//! What the channel knows of the contract's methods. Made by the build script.

use http::header::HeaderValue;
use prost::bytes::{Buf, Bytes};
use prost::encoding::{DecodeContext, WireType, bytes, decode_key, skip_field};

/// One method.
pub(crate) struct Method {
    path: &'static str,
    /// Whether it may be called again while the server is unavailable: one message answers it, and
    /// it does not change the store. An attempt whose answer was lost may have done so.
    pub(crate) again: bool,
    /// The number of the request's field `model`.
    model: Option<u32>,
}

include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

pub(crate) fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

impl Method {
    /// The model that a request, as it is sent, names. None where no header can carry it: then it
    /// is no model's name, and the server says so.
    pub(crate) fn model_in(&self, sent: &Bytes) -> Option<HeaderValue> {
        let number = self.model?;
        if sent.first() != Some(&0) {
            return None;
        }
        let model = field(sent.slice(PREFIX.min(sent.len())..), number)?;
        let plain = !model.is_empty() && model.iter().all(|byte| matches!(byte, b' '..=b'~'));
        plain.then(|| HeaderValue::from_bytes(&model).ok()).flatten()
    }
}

/// A field of a message that is of bytes.
fn field(mut message: Bytes, number: u32) -> Option<Bytes> {
    while message.has_remaining() {
        let (tag, kind) = decode_key(&mut message).ok()?;
        if tag == number && kind == WireType::LengthDelimited {
            let mut value = Bytes::new();
            bytes::merge(kind, &mut value, &mut message, DecodeContext::default()).ok()?;
            return Some(value);
        }
        skip_field(kind, tag, &mut message, DecodeContext::default()).ok()?;
    }
    None
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::v1::{
        EmbedRequest, StreamCompletionRequest, StreamImportModelRequest, WatchModelsRequest,
    };

    fn model(path: &str, request: &impl Message) -> Option<HeaderValue> {
        let sent = [&[0; PREFIX][..], &request.encode_to_vec()].concat();
        find(path).unwrap().model_in(&sent.into())
    }

    #[test]
    fn the_model_is_found_in_any_request_that_names_one() {
        let completion = StreamCompletionRequest {
            request_id: Some("one".into()),
            model: "smollm2:135m".into(),
            ..Default::default()
        };
        let path = "/headrace.v1.CompletionService/StreamCompletion";
        assert_eq!(model(path, &completion).unwrap(), "smollm2:135m");
        let embed = EmbedRequest { model: "minilm:l6".into(), ..Default::default() };
        assert_eq!(model("/headrace.v1.EmbeddingService/Embed", &embed).unwrap(), "minilm:l6");
        let import = StreamImportModelRequest { model: "a".into(), ..Default::default() };
        let path = "/headrace.v1.ModelService/StreamImportModel";
        assert_eq!(model(path, &import).unwrap(), "a");
        let path = "/headrace.v1.ModelService/WatchModels";
        assert_eq!(model(path, &WatchModelsRequest::default()), None);
    }

    #[test]
    fn a_name_that_no_header_carries_is_left_out() {
        for name in ["", "ö", "a\nb"] {
            let embed = EmbedRequest { model: name.into(), ..Default::default() };
            assert_eq!(model("/headrace.v1.EmbeddingService/Embed", &embed), None);
        }
        let embed = find("/headrace.v1.EmbeddingService/Embed").unwrap();
        for sent in [&b""[..], b"\0\0", b"\x01\0\0\0\x03\x0a\x01a", b"\0\0\0\0\x03\x0a\x09a"] {
            assert_eq!(embed.model_in(&Bytes::from_static(sent)), None);
        }
    }

    #[test]
    fn neither_streams_nor_what_changes_the_store_are_called_again() {
        let again = METHODS.iter().filter(|method| method.again);
        let of_models = again.clone().filter_map(|found| found.path.split_once(".ModelService/"));
        let of_models: Vec<_> = of_models.map(|(_, name)| name).collect();
        let expected = ["GetModel", "ListModels", "ListRunners", "LoadModel", "UnloadModel"];
        assert_eq!(of_models, expected);
        let others = again.filter(|method| !method.path.contains(".ModelService/"));
        let others: Vec<_> = others.map(|method| method.path).collect();
        let expected = [
            "/grpc.health.v1.Health/Check",
            "/grpc.health.v1.Health/List",
            "/headrace.v1.EmbeddingService/Embed",
            "/headrace.v1.RunnerService/Abort",
            "/headrace.v1.RunnerService/Drain",
            "/headrace.v1.RunnerService/GetRunner",
            "/headrace.v1.ScoreService/Score",
            "/headrace.v1.TokenizeService/CountTokens",
            "/headrace.v1.TokenizeService/Detokenize",
            "/headrace.v1.TokenizeService/RenderChat",
            "/headrace.v1.TokenizeService/Tokenize",
        ];
        assert_eq!(others, expected);
        assert!(find("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo").is_none());
    }
}
