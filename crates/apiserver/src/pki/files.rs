//! The files of the PKI directory: mode 0600, written whole or not at all.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use super::issue::{Authority, Credential, Request, load_key};
use crate::authn::keys::{SigningKey, VerifyingKey};

pub(super) fn create_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot create the certificate directory {}", dir.display()))
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// By a rename, so that a crash leaves the old file or the new one.
fn write(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&temporary, path)).with_context(|| format!("cannot write {}", path.display()))
}

fn paths(dir: &Path, stem: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")))
}

fn read_pair(dir: &Path, stem: &str, remedy: &str) -> Result<Option<Credential>> {
    let (crt, key) = paths(dir, stem);
    match (read(&crt)?, read(&key)?) {
        (Some(cert), Some(key)) => Ok(Some(Credential { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => bail!("{} exists but {} does not: {remedy}", crt.display(), key.display()),
        (None, Some(_)) => bail!("{} exists but {} does not: {remedy}", key.display(), crt.display()),
    }
}

/// Certificate and key are two files; a crash between the writes shows at the next start as a pair
/// that does not belong together.
fn write_pair(dir: &Path, stem: &str, credential: &Credential) -> Result<()> {
    let (crt, key) = paths(dir, stem);
    write(&key, &credential.key)?;
    write(&crt, &credential.cert)
}

pub(super) fn authority(dir: &Path, stem: &str, name: &str) -> Result<Authority> {
    let remedy = format!(
        "restore {stem}.crt and {stem}.key from a backup, or remove both to create a new authority \
         (every certificate of the old one becomes invalid)"
    );
    match read_pair(dir, stem, &remedy)? {
        Some(credential) => Authority::load(&credential)
            .map_err(|error| anyhow!("{} is unusable: {error:#}; {remedy}", paths(dir, stem).0.display())),
        None => {
            let (authority, credential) = Authority::create(name)?;
            write_pair(dir, stem, &credential)?;
            Ok(authority)
        }
    }
}

/// The stored certificate, or a new one when it is absent, due for renewal or no longer what is asked.
pub(super) fn leaf(dir: &Path, stem: &str, authority: &Authority, request: &Request) -> Result<Credential> {
    let remedy = format!("remove {stem}.crt and {stem}.key to have them issued again");
    if let Some(credential) = read_pair(dir, stem, &remedy)? {
        let good = authority.still_good(&credential, request);
        let path = paths(dir, stem).0;
        if good.map_err(|error| anyhow!("{} is unusable: {error:#}; {remedy}", path.display()))? {
            return Ok(credential);
        }
    }
    let credential = authority.issue(request).with_context(|| format!("cannot issue {stem}.crt"))?;
    write_pair(dir, stem, &credential)?;
    Ok(credential)
}

/// `sa.key` and `sa.pub`; the public file may hold retired keys too, whose tokens stay valid.
pub(super) fn service_account_keys(dir: &Path) -> Result<(String, String)> {
    let (key_path, pub_path) = (dir.join("sa.key"), dir.join("sa.pub"));
    let remedy = "restore sa.key and sa.pub from a backup, or remove both to create new keys \
                  (every service-account token becomes invalid)";
    let private = match (read(&key_path)?, pub_path.exists()) {
        (Some(private), _) => private,
        (None, true) => bail!("{} exists but {} does not: {remedy}", pub_path.display(), key_path.display()),
        (None, false) => {
            let private = rcgen::KeyPair::generate()?.serialize_pem();
            write(&key_path, &private)?;
            private
        }
    };
    SigningKey::from_pem(&private).map_err(|e| anyhow!("{} is unusable: {e:#}; {remedy}", key_path.display()))?;
    let public = match read(&pub_path)? {
        Some(public) => public,
        None => {
            let public = load_key(&private)
                .with_context(|| format!("cannot derive {} from {}", pub_path.display(), key_path.display()))?
                .public_key_pem();
            write(&pub_path, &public)?;
            public
        }
    };
    VerifyingKey::all_from_pem(&public).map_err(|e| anyhow!("{} is unusable: {e:#}; {remedy}", pub_path.display()))?;
    Ok((private, public))
}
