package deploy

import (
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
)

// three are the series of three healthy nodes, for an hour and a half, in the notation of promtool, a sample a minute.
const three = `
  regd_build_info{job="regd", instance="n1", version="v1"} 1x90
  regd_build_info{job="regd", instance="n2", version="v1"} 1x90
  regd_build_info{job="regd", instance="n3", version="v1"} 1x90
  regd_has_leader{job="regd", instance="n1"} 1x90
  regd_has_leader{job="regd", instance="n2"} 1x90
  regd_is_voter{job="regd", instance="n1"} 1x90
  regd_is_voter{job="regd", instance="n2"} 1x90
  regd_voters{job="regd", instance="n1"} 3x90
  regd_voters{job="regd", instance="n2"} 3x90
  regd_term{job="regd", instance="n1"} 7x90
  regd_staleness_seconds{job="regd", instance="n1"} 0.01x90
  regd_disk_free_bytes{job="regd", instance="n1"} 50e9x90
  regd_log_append_seconds{job="regd", instance="n1", quantile="0.99"} 0.02x90
  regd_applied_index{job="regd", instance="n1"} 1000+100x90
  regd_snapshot_index{job="regd", instance="n1"} 0+100x90
  regd_admission_rejected_total{job="regd", instance="n1", class="list"} 5x90
  regd_resyncs_total{job="regd", instance="n1", reason="slow_reader"} 5x90
  regd_limit{job="regd", instance="n1", resource="watches"} 1000x90
  regd_limit_used{job="regd", instance="n1", resource="watches"} 800x90
  regd_tls_certificate_expiry_seconds{job="regd", instance="n1", port="peer", kind="certificate"} 1e9x90
  regd_tls_reload_failures_total{job="regd", instance="n1", port="peer"} 1x90
  regd_suppressed_expirations_total{job="regd", instance="n1"} 5x90
  regd_check_abstentions_total{job="regd", instance="n1"} 5x90
  grpc_server_handled_total{job="regd", instance="n1", grpc_service="regd.api.v1.RegistryService", grpc_method="Get", grpc_code="OK"} 0+600x90
  grpc_server_handled_total{job="regd", instance="n1", grpc_service="regd.api.v1.RegistryService", grpc_method="Get", grpc_code="Internal"} 0x90
  regd_commit_seconds_bucket{job="regd", instance="n1", le="0.05"} 0+600x90
  regd_commit_seconds_bucket{job="regd", instance="n1", le="1"} 0+600x90
  regd_commit_seconds_bucket{job="regd", instance="n1", le="+Inf"} 0+600x90
  regd_apply_seconds_bucket{job="regd", instance="n1", le="0.01"} 0+600x90
  regd_apply_seconds_bucket{job="regd", instance="n1", le="0.25"} 0+600x90
  regd_apply_seconds_bucket{job="regd", instance="n1", le="+Inf"} 0+600x90
`

// third are the series that the third node has too.
const third = `
  regd_has_leader{job="regd", instance="n3"} 1x90
  regd_is_voter{job="regd", instance="n3"} 1x90
  regd_voters{job="regd", instance="n3"} 3x90
`

func TestAlertsFireWhenTheyShould(t *testing.T) {
	t.Parallel()
	tests := map[string]string{ // By alert, what is scraped; together with nothing else.
		"RegdAbsent": `
  up{job="other"} 1x90`,
		"RegdNoLeader": `
  regd_has_leader{job="regd", instance="n1"} 0x90
  regd_has_leader{job="regd", instance="n2"} 0x90`,
		"RegdQuorumAtRisk": three,
		"RegdNodeMissing":  three,
		"RegdLeaderFlapping": `
  regd_term{job="regd", instance="n1"} 7x50 8+1x40
  regd_term{job="regd", instance="n2"} 7x50 8+1x40`,
		"RegdNodeBehind": `
  regd_has_leader{job="regd", instance="n1"} 1x90
  regd_staleness_seconds{job="regd", instance="n2"} 1e9x90`,
		"RegdDiskFull": `
  regd_disk_free_bytes{job="regd", instance="n1"} 1e9x90`,
		"RegdDiskWillFill": `
  regd_disk_free_bytes{job="regd", instance="n1"} 20e9-100e6x90`,
		"RegdDiskSlow": `
  regd_log_append_seconds{job="regd", instance="n1", quantile="0.99"} 0.5x90`,
		"RegdWritesSlow": `
  regd_commit_seconds_bucket{job="regd", instance="n1", le="0.05"} 0+100x90
  regd_commit_seconds_bucket{job="regd", instance="n1", le="1"} 0+600x90
  regd_commit_seconds_bucket{job="regd", instance="n1", le="+Inf"} 0+600x90`,
		"RegdApplySlow": `
  regd_apply_seconds_bucket{job="regd", instance="n1", le="0.01"} 0+100x90
  regd_apply_seconds_bucket{job="regd", instance="n1", le="0.25"} 0+600x90
  regd_apply_seconds_bucket{job="regd", instance="n1", le="+Inf"} 0+600x90`,
		"RegdRefusingCalls": `
  regd_admission_rejected_total{job="regd", instance="n1", class="list"} 0+600x90`,
		"RegdLimitNear": `
  regd_limit{job="regd", instance="n1", resource="watches"} 1000x90
  regd_limit_used{job="regd", instance="n1", resource="watches"} 0x70 801x20`,
		"RegdQuotaNear": `
  regd_namespace_limit{job="regd", namespace="payments", instance="n1", resource="keys"} 1000x90
  regd_namespace_used{job="regd", namespace="payments", instance="n1", resource="keys"} 0x70 901x20`,
		"RegdInternalErrors": `
  grpc_server_handled_total{job="regd", instance="n1", grpc_service="regd.api.v1.RegistryService", grpc_method="Get", grpc_code="Internal"} 0x80 1x10`,
		"RegdWatchersSlow": `
  regd_resyncs_total{job="regd", instance="n1", reason="slow_reader"} 0+60x90`,
		"RegdPaused": `
  regd_suppressed_expirations_total{job="regd", instance="n1"} 0x85 3x5`,
		"RegdChecksAbstain": `
  regd_check_abstentions_total{job="regd", instance="n1"} 0x85 1x5`,
		"RegdCertificateExpires": `
  regd_tls_certificate_expiry_seconds{job="regd", instance="n1", port="peer", kind="certificate"} 500000x90`,
		"RegdCertificateNotRead": `
  regd_tls_reload_failures_total{job="regd", instance="n1", port="peer"} 0+1x90`,
		"RegdSnapshotOld": `
  regd_applied_index{job="regd", instance="n1"} 60000+100x90
  regd_snapshot_index{job="regd", instance="n1"} 8000x90`,
		"RegdVersionsDiffer": `
  regd_build_info{job="regd", instance="n1", version="v1"} 1x90
  regd_build_info{job="regd", instance="n2", version="v2"} 1x90`,
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: language()})
	for _, r := range rules(t) {
		series, ok := tests[r.Alert]
		if !ok {
			t.Errorf("%s: no test makes it fire", r.Alert)
			continue
		}
		t.Run(r.Alert, func(t *testing.T) {
			t.Parallel()
			if !fires(t, engine, series, r.Expr, r.long) {
				t.Error("it does not fire")
			}
			if fires(t, engine, three+third, r.Expr, r.long) {
				t.Error("it fires while all is well")
			}
		})
	}
}

// Without a leader, and with a cluster of one, no quorum is at risk: other alerts tell.
func TestTheQuorumIsAtRiskOnlyWhileThereIsOne(t *testing.T) {
	t.Parallel()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: language()})
	for _, r := range rules(t) {
		if r.Alert != "RegdQuorumAtRisk" {
			continue
		}
		for name, series := range map[string]string{
			"no leader": `
  regd_has_leader{job="regd", instance="n1"} 0x90
  regd_is_voter{job="regd", instance="n1"} 1x90
  regd_voters{job="regd", instance="n1"} 3x90`,
			"a cluster of one": `
  regd_has_leader{job="regd", instance="n1"} 1x90
  regd_is_voter{job="regd", instance="n1"} 1x90
  regd_voters{job="regd", instance="n1"} 1x90`,
		} {
			if fires(t, engine, series, r.Expr, r.long) {
				t.Errorf("%s: it fires", name)
			}
		}
	}
}

// fires tells whether an alert fires at the end of the series: it held for so long.
func fires(t *testing.T, engine *promql.Engine, series, expr string, long time.Duration) bool {
	t.Helper()
	storage := parse(t, series)
	const last, step = 89 * time.Minute, 30 * time.Second
	for at := last - long; at <= last; at += step {
		query, err := engine.NewInstantQuery(t.Context(), storage, nil, expr, time.Unix(0, 0).Add(at))
		if err != nil {
			t.Fatal(err)
		}
		result := query.Exec(t.Context())
		vector, err := result.Vector()
		if err != nil {
			t.Fatal(err)
		}
		n := len(vector)
		query.Close()
		if n == 0 {
			return false
		}
	}
	return true
}
