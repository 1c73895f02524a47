-- What wrk sends and counts for closed_loop.py, which says what the arguments are.
--
-- wrk's own images per second count whole runs: of answers that come in batches, the first and the
-- last would be cut. Here time runs from an answer to one a whole number of periods later.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } moment;
  int clock_gettime(int, moment *);
]]
local CLOCK_MONOTONIC = 1
local moment = ffi.new("moment")

local function now()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, moment)
  return tonumber(moment.seconds) + 1e-9 * tonumber(moment.nanoseconds)
end

local seconds, period, warm, pids = 0, 1, 0, {}
local requests, sent = {}, 0
local answers, failed = 0, 0
local began, ticks, last = nil, 0, nil

-- Processor time of the server, in clock ticks.
local function processor()
  local total = 0
  for _, pid in ipairs(pids) do
    local file = io.open("/proc/" .. pid .. "/stat")
    if file then
      local fields = {}
      for field in file:read("*a"):match("^.*%) (.*)$"):gmatch("%S+") do
        fields[#fields + 1] = field
      end
      file:close()
      total = total + tonumber(fields[12]) + tonumber(fields[13])
    end
  end
  return total
end

local function tell(whole)
  local images = began and last and last.images or 0
  io.write(string.format(
    '\n{"images": %d, "seconds": %.6f, "ticks": %d, "answers": %d, "failed": %d, "whole": %s}\n',
    images, images > 0 and last.at - began or 0, images > 0 and last.ticks - ticks or 0,
    answers, failed, tostring(whole)))
  io.flush()
end

function init(arguments)
  seconds, period, warm = tonumber(arguments[1]), tonumber(arguments[2]), tonumber(arguments[3])
  for pid in arguments[4]:gmatch("%d+") do pids[#pids + 1] = pid end
  for line in io.lines(arguments[5]) do
    local target, kind, path = line:match("^(.-)\t(.-)\t(.*)$")
    local file = io.open(path, "rb")
    local body = file:read("*a")
    file:close()
    requests[#requests + 1] = wrk.format("POST", target, {["Content-Type"] = kind}, body)
  end
end

function request()
  sent = sent + 1
  return requests[(sent - 1) % #requests + 1]
end

function response(status)
  answers = answers + 1
  if status ~= 200 then failed = failed + 1 end
  if answers < warm then return end
  if not began then
    began, ticks = now(), processor()
    warm = answers
  elseif (answers - warm) % period == 0 then
    local at = now()
    if at - began >= seconds then
      last = {at = at, ticks = processor(), images = answers - warm}
      tell(true)
      os.exit(0)
    end
  end
end

function done()
  tell(false)
end
