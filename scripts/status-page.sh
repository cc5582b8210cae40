#!/usr/bin/env bash
# The endpoint's status page as a browser shows it: the page that the namespace test fetched from a speaker, in headless Chromium without
# script (by the policy that the speaker sends with it) and without any name server, as wide as a phone and as a screen. Called by
# `make status-page`. Fails if the browser does not show it. The pictures stay in target/status-page.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/target/status-page
command -v chromium >/dev/null || { echo "$0: chromium is not installed: apt-get install --no-install-recommends chromium" >&2; exit 1; }
mkdir -p "$out"
rm -f "$out"/*
SHEAVE_STATUS_PAGE=$out/page.html cargo test -q -p sheave-speaker --test endpoint
# The page's own server is gone, so the copy does not ask for itself again; it carries the policy that the server sends with the page.
served=$(mktemp -d)
trap 'rm -rf "$served"' EXIT
policy="<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>"
sed "s|<meta http-equiv=\"refresh\" content=\"5\"/>|$policy|" "$out/page.html" >"$served/page.html"

browser() { # OPTION...
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$served/profile" \
    --host-resolver-rules="MAP * ~NOTFOUND" "$@" "file://$served/page.html" 2>>"$out/chromium.log"
}

for view in phone:390,2600 screen:1280,1400; do
  browser --window-size="${view#*:}" --screenshot="$out/${view%%:*}.png"
  [ -s "$out/${view%%:*}.png" ] || { echo "$0: no picture of ${view%%:*}" >&2; exit 1; }
done
# As the browser has understood it.
browser --dump-dom >"$out/dom.html"
for words in "API server endpoint" "Drained" "Owners of"; do
  grep -q "$words" "$out/dom.html" || { echo "$0: the browser does not show: $words" >&2; exit 1; }
done
echo "pictures: $out/phone.png $out/screen.png"
