# Sourced by scripts that have the tests use programs of Debian's without installing them. `fetched NAME RELEASE` sets `place` to
# /var/cache/qstack-tests/NAME and makes that, once: the caller's `download` fetches packages of a release (sid, trixie …) into the
# current directory, they are unpacked into root/, and the caller's `finish` does the rest, in the new directory.
fetched() {
    place=/var/cache/qstack-tests/$1
    [ ! -e "$place" ] || return 0
    mkdir -p "${place%/*}"
    # Appears under its name when it is whole.
    work=$(mktemp -d "$place.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    apt_of "$2" "$work/apt"
    (cd "$work/apt/archives" && download >&2)
    for package in "$work"/apt/archives/*.deb; do dpkg -x "$package" "$work/root"; done
    rm -rf "$work/apt"
    (cd "$work" && finish >&2)
    mv -T "$work" "$place"
    trap - EXIT
}

# A state of apt's own in a directory, for a release of which nothing is installed; nothing of the machine's own is read or changed.
apt_of() {
    mkdir -p "$2/lists/partial" "$2/archives/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $1 main" > "$2/sources.list"
    : > "$2/status"
    cat > "$2/conf" << CONF
Dir::State "$2";
Dir::State::status "$2/status";
Dir::Cache "$2";
Dir::Etc::SourceList "$2/sources.list";
Dir::Etc::SourceParts "/dev/null";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
    export APT_CONFIG="$2/conf"
    apt-get update -qq >&2
}
