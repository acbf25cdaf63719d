//! Where programs of the host are that this one executes.

use std::ffi::OsStr;
use std::path::PathBuf;

use rustix::fs::{Access, access};

/// Where to look without a search path.
const USUAL_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Looks for a program in the directories of the search path. Relative ones are passed over: what we execute has our rights,
/// or more, and where we stand is not for others to say.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    find_in(std::env::var_os("PATH").as_deref(), name)
}

fn find_in(path: Option<&OsStr>, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path.unwrap_or(OsStr::new(USUAL_PATH)))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|program| program.is_file() && access(program, Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    #[test]
    fn is_looked_for_in_absolute_directories_only() {
        let directory = std::env::temp_dir().join(format!("qrun-program-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let directories = [Path::new("."), Path::new("/nowhere"), &directory];
        let path = std::env::join_paths(directories).unwrap();
        let found = || find_in(Some(&path), "tool");
        let mut all = vec![found()];
        let program = directory.join("tool");
        std::fs::write(&program, "").unwrap();
        all.push(found());
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        all.push(found());
        std::fs::remove_dir_all(&directory).unwrap();
        // Not there; there without the right to execute it; with it.
        assert_eq!(all, [None, None, Some(program)]);
    }

    #[test]
    fn there_is_a_usual_path() {
        let shell = find_in(None, "sh").unwrap();
        assert!(shell.is_absolute());
    }
}
