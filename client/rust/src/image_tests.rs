use super::*;
use crate::events::Fold as _;
use crate::v1::{ImagePreview, ImageProgress};

fn started() -> Event {
    Event::Started(ImageStarted { seed: 7, ..Default::default() })
}

fn chunk(index: i32, offset: i64, data: &'static str) -> Event {
    Event::Chunk(ImageChunk { index, offset, data: data.into() })
}

fn completed(files: &[(i32, &str)]) -> Event {
    let images = files.iter().map(|(index, data)| ImageResult {
        index: *index,
        sha256: checksum(data.as_bytes()),
        media_type: "image/png".into(),
        ..Default::default()
    });
    Event::Completed(ImageCompleted { images: images.collect(), ..Default::default() })
}

fn fold(count: i32, events: &[Event]) -> Result<Images, Error> {
    let mut fold = Fold::new(count);
    events.iter().try_for_each(|event| fold.add(event))?;
    fold.whole("t".into()).ok_or_else(Error::incomplete)
}

#[test]
fn chunks_become_files() {
    let events = [
        Event::Progress(ImageProgress::default()),
        started(),
        Event::Preview(ImagePreview::default()),
        chunk(0, 0, "ab"),
        chunk(1, 0, "x"),
        chunk(0, 2, "c"),
        completed(&[(0, "abc"), (1, "x")]),
    ];
    let whole = fold(2, &events).unwrap();
    let files: Vec<_> = whole.images.iter().map(|image| &*image.data).collect();
    assert_eq!(files, [&b"abc"[..], b"x"]);
    assert_eq!((whole.started.seed, &*whole.images[0].result.media_type), (7, "image/png"));
}

#[test]
fn a_checksum_is_that_of_sha_256() {
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(checksum(b"abc"), abc);
}

#[test]
fn a_file_that_was_damaged_is_data_loss() {
    let events = [started(), chunk(0, 0, "abd"), completed(&[(0, "abc")])];
    let error = fold(1, &events).unwrap_err();
    assert_eq!((error.code(), error.reason()), (Code::DataLoss, None));
    assert!(error.message().contains("image 0"));
}

#[test]
fn what_breaks_the_contract_is_an_error() {
    let broken: [&[Event]; 8] = [
        &[chunk(0, 0, "a")],
        &[completed(&[])],
        &[started(), started()],
        &[started(), chunk(0, 1, "a")],
        &[started(), chunk(0, 0, "a"), chunk(0, -1, "a")],
        &[started(), completed(&[])],
        &[started(), chunk(0, 0, "a"), chunk(1, 0, "b"), completed(&[(0, "a")])],
        &[started(), chunk(0, 0, "a"), completed(&[(0, "a")]), chunk(0, 1, "a")],
    ];
    for events in broken {
        let error = fold(1, events).unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::Internal, None), "{events:?}");
    }
    assert!(fold(2, &[started(), chunk(0, 0, "a"), completed(&[(0, "a")])]).is_err());
}

#[test]
fn without_its_end_there_is_no_whole() {
    let error = fold(1, &[started(), chunk(0, 0, "a")]).unwrap_err();
    assert_eq!((error.code(), error.reason_name()), (Code::Internal, ""));
}
