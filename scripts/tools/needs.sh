# What the scripts need, fetched if it can be. Sourced, in the root of the checkout.
need_go() {
	command -v go >/dev/null || { echo "go is not installed; version 1.26 or later is needed" >&2; exit 3; }
}
need_chdb() { # ClickHouse's engine as a library
	[ -n "${LIBCHDB_PATH:-}" ] || ls deploy/embedded/chdb/node_modules/@chdb/*/libchdb.so >/dev/null 2>&1 ||
		npm ci --prefix deploy/embedded/chdb --no-audit --no-fund >&2 || { echo "ClickHouse's engine could not be fetched with npm" >&2; exit 3; }
}
