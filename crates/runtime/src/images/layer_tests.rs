//! Layers, friendly and hostile.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

struct Entry<'a>(&'a str, EntryType, &'a str, &'a [u8]);

fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for Entry(path, kind, link, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == EntryType::Directory { 0o1750 } else { 0o4640 });
        header.set_uid(12);
        header.set_gid(34);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        // Raw bytes, because the builder itself refuses hostile paths.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A directory for the layer with a file beside it that no layer may touch.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        let base = std::env::temp_dir().join(format!("isopod-layer-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&base).unwrap();
        std::fs::write(base.join("secret"), "untouched").unwrap();
        Place(base)
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Unpacked> {
        unpack(bytes, &self.0.join("layer"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join("layer").join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let untouched = std::fs::read_to_string(self.0.join("secret")).ok();
        let _ = std::fs::remove_dir_all(&self.0);
        if !std::thread::panicking() {
            assert_eq!(untouched.as_deref(), Some("untouched"));
        }
    }
}

use EntryType::{Directory, Link, Regular, Symlink};

#[test]
fn files_keep_what_the_archive_says() {
    let place = Place::new();
    let layer = archive(&[
        Entry("d", Directory, "", b""),
        Entry("d/file", Regular, "", b"content"),
        Entry("d/hard", Link, "d/file", b""),
        Entry("soft", Symlink, "/d/file", b""),
    ]);
    let unpacked = place.unpack(&layer).unwrap();
    assert_eq!((unpacked.diff_id, unpacked.size), (digest(&layer), 7));
    let file = std::fs::metadata(place.path("d/file")).unwrap();
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777, file.mtime(), file.nlink()),
        (12, 34, 0o4640, 1_000_000_000, 2)
    );
    let directory = std::fs::metadata(place.path("d")).unwrap();
    assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o1750, 1_000_000_000));
    assert_eq!(std::fs::read_link(place.path("soft")).unwrap(), Path::new("/d/file"));
}

#[test]
fn whiteouts_become_overlays_own() {
    let place = Place::new();
    let layer = archive(&[
        Entry("d", Directory, "", b""),
        Entry("d/.wh.gone", Regular, "", b""),
        Entry("opaque", Directory, "", b""),
        Entry("opaque/.wh..wh..opq", Regular, "", b""),
        Entry(".wh..wh.plnk", Regular, "", b""),
    ]);
    place.unpack(&layer).unwrap();
    let gone = std::fs::metadata(place.path("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0u8; 8];
    let path = crate::sys::c_path(&place.path("opaque")).unwrap();
    // SAFETY: both names are NUL-terminated and the buffer's size is passed along.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    assert_eq!((length, value[0]), (1, b'y'));
    assert_eq!(std::fs::read_dir(place.path("")).unwrap().count(), 2);
}

#[test]
fn nothing_leads_out_of_the_layer() {
    let outside: &[&[Entry]] = &[
        &[Entry("../secret", Regular, "", b"x")],
        &[Entry("a/../../secret", Regular, "", b"x")],
        &[Entry("hard", Link, "../secret", b"")],
        &[Entry("up", Symlink, "..", b""), Entry("hard", Link, "up/secret", b"")],
    ];
    for entries in outside {
        assert!(Place::new().unpack(&archive(entries)).is_err(), "{:?}", entries[0].0);
    }
    // Links are followed, but only to what they name inside the layer.
    let contained: &[&[Entry]] = &[
        &[Entry("up", Symlink, "..", b""), Entry("up/secret", Regular, "", b"x")],
        &[Entry("root", Symlink, "/", b""), Entry("root/secret", Regular, "", b"x")],
        &[Entry("deep", Symlink, "../../../..", b""), Entry("deep/secret", Regular, "", b"x")],
        &[Entry("/secret", Regular, "", b"x")],
    ];
    for entries in contained {
        let place = Place::new();
        place.unpack(&archive(entries)).unwrap();
        assert_eq!(std::fs::read_to_string(place.path("secret")).unwrap(), "x", "{:?}", entries[0].0);
    }
    // A file is replaced, never written through a link that lies in its place.
    let place = Place::new();
    let target = place.0.join("secret");
    let through = archive(&[Entry("f", Symlink, target.to_str().unwrap(), b""), Entry("f", Regular, "", b"x")]);
    place.unpack(&through).unwrap();
    assert!(std::fs::symlink_metadata(place.path("f")).unwrap().is_file());
}

#[test]
fn later_entries_replace_earlier_ones_of_any_kind() {
    let place = Place::new();
    let layer = archive(&[
        Entry("x", Directory, "", b""),
        Entry("x/below", Regular, "", b"1"),
        Entry("x", Regular, "", b"now a file"),
        Entry("y", Regular, "", b"1"),
        Entry("y/below", Regular, "", b"now in a directory"),
    ]);
    place.unpack(&layer).unwrap();
    assert_eq!(std::fs::read_to_string(place.path("x")).unwrap(), "now a file");
    assert_eq!(std::fs::read_to_string(place.path("y/below")).unwrap(), "now in a directory");
}

#[test]
fn compressed_layers_unpack_alike() {
    use std::io::Write;
    let layer = archive(&[Entry("f", Regular, "", &[7; 100_000])]);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let (one, two) = layer.split_at(50_000);
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    for blob in [
        gzip(&layer),
        [gzip(one), gzip(two)].concat(),
        zstd(&layer),
        [skipped.clone(), zstd(one), skipped, zstd(two)].concat(),
    ] {
        let place = Place::new();
        let unpacked = place.unpack(&blob).unwrap();
        assert_eq!((unpacked.diff_id, unpacked.blob), (digest(&layer), digest(&blob)));
        assert_eq!(std::fs::read(place.path("f")).unwrap(), [7; 100_000]);
    }
}
