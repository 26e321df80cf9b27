-- For wrk: one request over and over, and one line of JSON at the end.
-- Arguments after `--`: the method, and a body.
function init(args)
  wrk.method, wrk.body = args[1], args[2]
  wrk.headers["Content-Type"] = "application/json"
end

function done(summary, latency, _)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, failed
  ))
end
