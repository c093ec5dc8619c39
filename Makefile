# What a developer can run. `make` alone lists it.
#
# Tests that make network namespaces and devices need root: sudo -E make test

CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help deps build demo test lint formal measured sim mutants fuzz bench bench-peers bench-migration bench-tcp nat-matrix micro soak blind crash hostile revocation no-flood

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## installs the Debian packages that building and testing need (root)
	@scripts/deps

build: ## the programs, optimised, in target/release
	$(CARGO) build --workspace --release --locked

demo: deps ## the whole product in namespaces, told as it goes (root)
	$(CARGO) build --release --locked -p shadowmesh -p shadowmesh-relay
	scripts/demo

test: deps ## every test of the workspace (root, for network namespaces)
	@# Of the whole workspace, since the namespace tests start programs of other crates.
	$(CARGO) test --workspace --no-fail-fast --locked

lint: ## formatting, clippy (warnings are errors), and that code and tests cite each MUST of the protocol
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	scripts/cited

# A command, and the table of what it measured, also when it failed.
measuring = $(1); s=$$?; scripts/measured $(2) && exit $$s

WORLDS ?= 10000
FROM ?= 0
sim: ## plays WORLDS=10000 worlds of the simulator, from number FROM=0
	@mkdir -p target/measured
	$(call measuring,$(CARGO) run --locked -q -p shadowmesh-sim --bin sim -- --from $(FROM) --worlds $(WORLDS) --report target/measured/sim.json,target/measured/sim.json)

blind: deps ## searches a relay's memory, state and traffic for what it must not know (root)
	$(CARGO) build --locked -p shadowmesh -p shadowmesh-relay
	$(CARGO) test --locked -p shadowmesh-netns-tests --test blind -- --nocapture
	scripts/measured target/measured/blind.json

CRASHES ?= 200
crash: deps ## SIGKILL to the relay under a ping, and to a client at CRASHES=200 moments (root)
	$(CARGO) build --locked -p shadowmesh -p shadowmesh-relay
	CRASHES=$(CRASHES) $(CARGO) test --locked -p shadowmesh-netns-tests --test crash -- --nocapture --test-threads 1
	scripts/measured target/measured/crash.json target/measured/crash-relay.json

revocation: deps ## how soon a revoked member is cut, behind a partition too, and what a rotation costs (root)
	$(CARGO) build --locked -p shadowmesh -p shadowmesh-relay
	$(CARGO) test --locked -p shadowmesh-netns-tests --test revocation -- --nocapture --test-threads 1
	scripts/measured target/measured/revocation.json target/measured/rotation.json

FLOOD_WORLDS ?= 100000
no-flood: ## plays FLOOD_WORLDS=100000 worlds in which members name a victim's address as their own
	@mkdir -p target/measured
	$(call measuring,$(CARGO) run --locked -q -p shadowmesh-sim --bin no-flood -- --worlds $(FLOOD_WORLDS) --report target/measured/flood.json,target/measured/flood.json)

mutants: ## mutants of the core that the simulator must catch
	$(call measuring,tests/mutants/run,target/measured/mutants.json)

# Of the speed, which docs/BENCHMARKS.md is then about: nine take an hour and a half of the two that all takes.
SPEED_ROUNDS ?= 9
bench: deps ## measured promises on the shipped programs: joining, shares, memory, handshakes, rekeys, a thousand clients, loss, bridges, the relay alone, speed (root)
	$(CARGO) build --release --locked -p shadowmesh -p shadowmesh-relay -p shadowmesh-sim -p shadowmesh-netns-tests --bins
	@mkdir -p target/measured
	SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-bench
	SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-load
	SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-rekey
	target/release/handshake-cost --report target/measured/bench-handshake.json
	SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-loss
	SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-bridge
	SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-relay
	SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-speed --underlay gso,wire --rounds $(SPEED_ROUNDS) --page docs/BENCHMARKS.md
	scripts/measured $(addprefix target/measured/,$(addsuffix .json,bench bench-load bench-rekey bench-handshake bench-loss bench-bridge bench-relay bench-speed))

bench-peers: ## installs Debian's other VPNs, which `make bench` then measures too (root)
	@scripts/bench-peers

RUNS ?=
PAIRS ?=
nat-matrix: deps ## two machines behind each pair of NATs: how soon they talk directly, RUNS=5 of each, PAIRS=a/b,… only those (root)
	$(CARGO) build --release --locked -p shadowmesh -p shadowmesh-relay -p shadowmesh-netns-tests --bins
	$(call measuring,RUNS=$(or $(RUNS),5) PAIRS='$(PAIRS)' SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/nat-matrix,target/measured/nat-matrix.json)

bench-migration: deps ## moves from relay to direct and back under traffic, RUNS=100 cuts (root)
	$(CARGO) build --release --locked -p shadowmesh -p shadowmesh-relay -p shadowmesh-sim -p shadowmesh-netns-tests --bins
	@mkdir -p target/measured
	target/release/validation-cost --report target/measured/validation.json
	$(call measuring,RUNS=$(or $(RUNS),100) SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-migration,target/measured/validation.json target/measured/migration.json)

bench-tcp: deps ## speed where TCP 443 alone leaves, beside TLS and WebSocket by themselves, BENCH_ROUNDS=5 (root)
	$(CARGO) build --release --locked -p shadowmesh -p shadowmesh-relay -p shadowmesh-netns-tests --bins
	$(call measuring,SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-tcp,target/measured/bench-tcp.json)

micro: deps ## instructions (callgrind) and times of the pieces of the hot path (root)
	tests/micro/run

SOAK_SECONDS ?= 3600
soak: deps ## an hour at full speed, each byte checked by hash, memory watched, SOAK_SECONDS=3600 (root)
	$(CARGO) build --release --locked -p shadowmesh -p shadowmesh-netns-tests --bins
	$(call measuring,SOAK_SECONDS=$(SOAK_SECONDS) SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-soak,target/measured/soak.json)

hostile: deps ## strangers flood relay and clients beside a session, HOSTILE_SECONDS=60 with and without (root, two cores)
	$(CARGO) build --release --locked -p shadowmesh -p shadowmesh-relay -p shadowmesh-netns-tests --bins
	$(call measuring,SHADOWMESH_BIN_DIR=$(CURDIR)/target/release target/release/measure-hostile,target/measured/hostile.json)

fuzz: ## each fuzz target under libFuzzer, SECONDS_EACH=120
	$(call measuring,tests/fuzz/run,target/measured/fuzz.json)

formal: ## the symbolic models against what they are expected to prove (Verifpal; ProVerif where it is installed)
	tests/formal/run

measured: ## all measured promises as a table; fails when one does not hold
	scripts/measured
