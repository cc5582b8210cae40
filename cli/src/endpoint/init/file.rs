//! Files: the one that is there, and those that are written, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use sheave_endpoint::preset::Written;
use sheave_endpoint::{Endpoint, Keys, limits};

/// As a speaker reads it. `None`: there is none.
pub fn existing(path: &Path) -> Result<Option<Endpoint>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| path.display().to_string())?,
    };
    let read = || -> Result<Endpoint> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            bail!("it is no file");
        }
        Endpoint::check_mode(metadata.mode())?;
        let mut text = String::new();
        // One byte more shows that it is too long.
        (&file).take(limits::FILE as u64 + 1).read_to_string(&mut text).context("its text (UTF-8)")?;
        Ok(Endpoint::parse(&text)?)
    };
    read().map(Some).with_context(|| path.display().to_string())
}

/// Fields in which they differ, as the file calls them.
pub fn differences(one: &Endpoint, other: &Endpoint) -> Vec<&'static str> {
    let Endpoint { addresses, interface, ports, members, keys, timing, health, group } = one;
    let same = [
        ("addresses", *addresses == other.addresses),
        ("interface", *interface == other.interface),
        ("ports", *ports == other.ports),
        ("members", *members == other.members),
        ("key", *keys == other.keys),
        ("timing", *timing == other.timing),
        ("health", *health == other.health),
        ("group", *group == other.group),
    ];
    same.into_iter().filter(|(_, same)| !same).map(|(field, _)| field).collect()
}

pub fn new_keys() -> io::Result<Keys> {
    let mut current = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut current)?;
    Ok(Keys { current, previous: None })
}

/// Keys are for the file alone.
pub fn shown(text: &str) -> String {
    let is_key = |line: &&str| line.starts_with("key: ") || line.starts_with("previousKey: ");
    let hide = |line: &str| line.split_once(' ').map_or_else(String::new, |(field, _)| format!("{field} (not shown)"));
    text.lines().map(|line| if is_key(&line) { hide(line) } else { line.to_owned() } + "\n").collect()
}

/// Renamed into place with its mode. The name before begins with a dot: a kubelet leaves such files alone.
pub fn write(written: &Written) -> Result<()> {
    let path = Path::new(&written.path);
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { bail!("no path of a file") };
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let temporary = folder.join(format!(".{}.new", name.to_string_lossy()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).context("remove what an earlier run left");
        }
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(written.mode).open(&temporary)?;
    file.write_all(written.text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // The name is on disk, too.
    Ok(File::open(folder)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_written_with_its_mode_and_found_again() {
        let folder = std::env::temp_dir().join(format!("sheave-init-file-{}", std::process::id()));
        let path = folder.join("etc/endpoint.yaml");
        assert!(existing(&path).unwrap().is_none());
        let text = "addresses: [192.0.2.100]\nports: [{listen: 6443}]\nmembers: [{name: a, address: 192.0.2.11}]
key: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\nhealth: {insecureSkipVerify: true}\n";
        let written = Written { path: path.to_str().unwrap().into(), mode: 0o600, text: text.into() };
        for _ in 0..2 {
            write(&written).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        }
        let found = existing(&path).unwrap().unwrap();
        assert!(found == Endpoint::parse(text).unwrap());
        let mut other = found.clone();
        other.ports[0].target = 6444;
        other.interface = Some("eth0".into());
        assert_eq!(differences(&found, &other), ["interface", "ports"]);
        assert!(differences(&found, &found).is_empty());
        // A file that others can read is refused with a reason, not taken.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = format!("{:#}", existing(&path).unwrap_err());
        assert!(error.contains("0644 is refused: 0600 is needed"), "{error}");
        let left: Vec<_> = fs::read_dir(folder.join("etc")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing but the file");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_key_is_not_shown() {
        let text = shown("a: 1\nkey: AAEC\npreviousKey: AQEC\n");
        assert_eq!(text, "a: 1\nkey: (not shown)\npreviousKey: (not shown)\n");
    }

    #[test]
    fn two_new_keys_differ() {
        assert!(new_keys().unwrap() != new_keys().unwrap());
    }
}
