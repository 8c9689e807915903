# Recipes for people and CI alike. `just` lists them; https://just.systems

_default:
    @just --list

# Everything that must hold before a commit is shared.
check: fmt clippy doc test tidy deny

# Formatting, checked, not changed.
fmt:
    cargo fmt --all --check

# Lints of Cargo.toml and clippy.toml, warnings as errors.
clippy:
    cargo clippy --locked --all-targets -- -D warnings

# Documentation, private items included, warnings as errors.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# Every test; none needs privileges or a network.
test:
    cargo test --locked

# Layering and looks.
tidy:
    cargo test --locked --test tidy

# Licences, advisories, duplicate and forbidden crates; needs `cargo install cargo-deny --locked`.
deny:
    cargo deny --locked check

# All benchmarks, or those whose path contains FILTER. Numbers mean something on a quiet machine.
bench FILTER="":
    cargo bench --locked -- {{FILTER}}

# A terminator with a self-signed certificate and a built-in origin, on 127.0.0.1:8443.
demo:
    cargo run --locked --release -- demo
