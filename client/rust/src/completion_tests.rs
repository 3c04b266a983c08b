use super::*;
use crate::events::Fold as _;
use crate::v1::CompletionProgress;

fn started() -> Event {
    Event::Started(CompletionStarted { prompt_tokens: 3, seed: 7, ..Default::default() })
}

fn delta(choice: i32, text: &str, token_ids: &[u32]) -> Event {
    let (text, token_ids) = (text.into(), token_ids.into());
    Event::Delta(CompletionDelta { choice, text, token_ids, ..Default::default() })
}

fn part(index: i32, name: Option<&str>, arguments: &str) -> Event {
    let part = ToolCallPart {
        index,
        id: name.map(|name| format!("call_{name}")),
        name: name.map(Into::into),
        arguments_json: arguments.into(),
    };
    Event::Delta(CompletionDelta { tool_calls: vec![part], ..Default::default() })
}

fn completed(reasons: &[FinishReason]) -> Event {
    let choices = (0..).zip(reasons).map(|(index, reason)| ChoiceResult {
        index,
        finish_reason: (*reason).into(),
        ..Default::default()
    });
    let usage = Some(Usage { prompt_tokens: 3, output_tokens: 4, ..Default::default() });
    let choices = choices.collect();
    Event::Completed(CompletionCompleted { choices, usage, resumed: 1, ..Default::default() })
}

fn fold(events: &[Event]) -> Result<Completion, Error> {
    let mut fold = Fold::default();
    events.iter().try_for_each(|event| fold.add(event))?;
    fold.whole("t".into()).ok_or_else(Error::incomplete)
}

#[test]
fn deltas_become_the_whole() {
    let events = [
        Event::Progress(CompletionProgress::default()),
        started(),
        delta(0, "Once ", &[1]),
        Event::Progress(CompletionProgress::default()),
        delta(0, "", &[2]),
        delta(0, "upon", &[3, 4]),
        completed(&[FinishReason::Length]),
    ];
    let whole = fold(&events).unwrap();
    assert_eq!(whole.text(), "Once upon");
    assert_eq!(whole.token_ids(), [1, 2, 3, 4]);
    assert_eq!(whole.finish_reason(), FinishReason::Length);
    assert_eq!((whole.usage().prompt_tokens, whole.usage().output_tokens), (3, 4));
    assert_eq!((whole.resumes(), whole.started.seed, &*whole.trace_id), (1, 7, "t"));
}

#[test]
fn choices_are_kept_apart() {
    let ends = [FinishReason::Stop, FinishReason::EndOfText];
    let events = [
        started(),
        delta(1, "b", &[2]),
        delta(0, "a", &[1]),
        delta(1, "c", &[3]),
        completed(&ends),
    ];
    let whole = fold(&events).unwrap();
    let texts: Vec<_> = whole.choices.iter().map(|choice| &*choice.text).collect();
    assert_eq!(texts, ["a", "bc"]);
    assert_eq!(whole.choices[1].result.finish_reason(), FinishReason::EndOfText);
}

#[test]
fn parts_become_calls() {
    let events = [
        started(),
        part(0, Some("weather"), "{\"city\":"),
        part(0, None, "\"Oslo\"}"),
        part(1, Some("time"), "{}"),
        completed(&[FinishReason::ToolCalls]),
    ];
    let whole = fold(&events).unwrap();
    let [weather, time] = &whole.choices[0].tool_calls[..] else { panic!("{whole:?}") };
    assert_eq!((&*weather.id, &*weather.name), ("call_weather", "weather"));
    assert_eq!(weather.arguments_json, "{\"city\":\"Oslo\"}");
    assert_eq!(time.arguments_json, "{}");
}

#[test]
fn what_breaks_the_contract_is_an_error() {
    let end = || completed(&[FinishReason::Stop]);
    let broken: [&[Event]; 10] = [
        &[delta(0, "a", &[1])],
        &[end()],
        &[started(), started()],
        &[started(), delta(0, "a", &[1]), end(), delta(0, "b", &[2])],
        &[started(), delta(16, "a", &[1])],
        &[started(), delta(-1, "a", &[1])],
        &[started(), delta(0, "a", &[1]), delta(1, "b", &[1]), end()],
        &[started(), part(0, None, "{}")],
        &[started(), part(1, Some("a"), "{")],
        &[started(), part(0, Some("a"), "{"), part(0, Some("b"), "}")],
    ];
    for events in broken {
        let error = fold(events).unwrap_err();
        assert_eq!((error.code(), error.reason()), (tonic::Code::Internal, None), "{events:?}");
    }
}

#[test]
fn an_output_may_be_empty() {
    let whole = fold(&[started(), completed(&[FinishReason::EndOfText])]).unwrap();
    assert_eq!((whole.text(), whole.token_ids()), ("", &[][..]));
}

#[test]
fn without_its_end_there_is_no_whole() {
    let error = fold(&[started(), delta(0, "a", &[1])]).unwrap_err();
    assert_eq!((error.code(), error.reason_name()), (tonic::Code::Internal, ""));
}
