//! How much disk a directory takes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of all regular files and symbolic links below `path` (or of `path` itself), hard links counted once. Other
/// file systems mounted below are not entered, and what vanishes while we look is not counted.
#[must_use]
pub fn of_tree(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    if !metadata.is_dir() {
        return metadata.len();
    }
    let device = metadata.dev();
    let mut seen = HashSet::new();
    let mut total = 0;
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            // Of the entry itself: links are not followed.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                if metadata.dev() == device {
                    directories.push(entry.path());
                }
            } else if metadata.nlink() < 2 || seen.insert(metadata.ino()) {
                total += metadata.len();
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_count_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("sub")).unwrap();
        fs::write(path.join("sub/a"), [0; 1000]).unwrap();
        fs::hard_link(path.join("sub/a"), path.join("b")).unwrap();
        std::os::unix::fs::symlink("sub/a", path.join("c")).unwrap();
        assert_eq!(of_tree(path), 1005);
        assert_eq!(of_tree(&path.join("b")), 1000);
        assert_eq!(of_tree(&path.join("nosuch")), 0);
    }
}
