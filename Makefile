# The two commands of the README are `make run` and `make test`.
GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS   := -s -w -X main.version=$(VERSION)
DATA      ?= data
# Tests that need a tool fail without it in CI and say so loudly elsewhere.
TESTTIME  ?= 18m

.PHONY: run build test lint setup bench bench-store crash fuzz clean

run: build ## build and start Parley with its data in ./data
	./bin/parley serve --data-dir $(DATA)

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/parley ./cmd/parley

test: setup lint ## everything: format, vet, staticcheck, all suites under the race detector
	$(GO) test -race -timeout $(TESTTIME) ./...

lint:
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "gofmt these files:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	cd tools/ferret && $(GO) vet ./...

setup: ## what the tests need besides Go
	@sh tools/setup.sh

bench: build ## compare with stock mochi-mqtt in one interleaved run
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/stockmochi ./internal/load/stockmochi
	./bin/parley bench suite --rounds 5 --target self --target mochi=exec:bin/stockmochi,plain,lenient --baseline mochi --json bench.json

bench-store: ## compare the engines; PARLEY_TEST_MONGODB_URI names a MongoDB, without it FerretDB stands in
	$(GO) test ./store/pebblestore ./store/mongostore -run '^$$' -bench 'BenchmarkStore' -benchtime $${BENCHTIME:-500x}

crash: build ## the faults of go test, many times: docs/reliability.md says what each does
	$(GO) test ./internal/plays -run 'TestKill9$$|TestKill9LosesNoBell' -kills 200 -timeout 60m -v
	$(GO) test ./internal/plays -run 'OfPushWorkersLosesNoBell' -kills 60 -timeout 60m -v
	$(GO) test ./store/pebblestore -run 'Everywhere|TestPowerLoss|TestDiskFaults|TheClockJumps' -points 1500 -timeout 60m -v
	$(GO) test ./store/mongostore -run 'Faults|Dies|Writers|Away' -count 5 -timeout 60m -v
	$(GO) test ./delivery -rapid.checks 20000 -timeout 60m
	./bin/parley bench crash --kills 50

fuzz: ## each fuzz target of every package for a while
	@for p in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u); do \
	  for f in $$($(GO) test ./$$p -list '^Fuzz' | grep ^Fuzz); do echo "$$p $$f"; $(GO) test ./$$p -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-30s} || exit 1; done; done

clean:
	rm -rf bin dist
