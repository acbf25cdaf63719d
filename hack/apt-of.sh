#!/bin/sh
# Makes DIRECTORY/apt, a state of apt's own for a release of Debian (sid, trixie …) in which nothing is installed, and prints
# the path of its configuration, for APT_CONFIG: apt-of.sh RELEASE DIRECTORY. Nothing of the machine's own is read or changed.
set -eu
apt=$2/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $1 main" > "$apt/sources.list"
: > "$apt/status"
cat > "$apt/conf" << CONF
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
APT_CONFIG=$apt/conf apt-get update -qq >&2
echo "$apt/conf"
