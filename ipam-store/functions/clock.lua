-- The ledger's time: this server's clock, but it never goes back. If the clock is set back, the difference becomes an
-- offset, and the ledger's time runs slower until the offset is gone. So nothing has to wait for the clock to catch up.

-- The part of passing time by which the ledger's time is slower while there is an offset.
local SLOWED = 0.1
-- A clock that jumps ahead by more than this was corrected: the jump is no time that passed, and the offset shrinks by
-- it. The clock is read at each heartbeat, so no real interval is as long as this.
local JUMP_MS = 60000
local KEEP_MS = 1000
-- The last time that JavaScript can represent.
local LAST_MS = 8640000000000000

-- By root: `server`, the server's clock when it was read last, in ms; `offset`, which is added to it; `kept`, when the
-- time was last written to meta. It outlives the permission to grant.
local clocks = {}

-- When this library starts, an earlier one may have told a later time, perhaps on a server with another clock.
local function catch_up(root, clock)
  local told = tonumber(redis.call('HGET', root .. ':meta', 'clockMs') or nil)
  if told and told <= LAST_MS then
    clock.offset = math.max(clock.offset, told - clock.server)
  end
end

local function now_ms(root)
  local time = redis.call('TIME')
  local server = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local clock = clocks[root]
  if not clock then
    clock = { server = server, offset = 0, kept = 0 }
    clocks[root] = clock
    catch_up(root, clock)
  end
  local passed = server - clock.server
  if passed < 0 then
    clock.offset = clock.offset - passed
  elseif clock.offset > 0 then
    clock.offset = math.max(0, clock.offset - (passed > JUMP_MS and passed or passed * SLOWED))
  end
  clock.server = server
  return math.floor(server + clock.offset)
end

-- Writes the time to meta once a second, for the next server or library. `now` is the answer of now_ms. Answers the
-- time, which is later than `now` if an earlier master has told a later one; and whether a second is over.
local function keep_time(root, now)
  local clock = clocks[root]
  if now < clock.kept + KEEP_MS then
    return now, false
  end
  catch_up(root, clock)
  now = math.floor(clock.server + clock.offset)
  redis.call('HSET', root .. ':meta', 'clockMs', digits(now))
  clock.kept = now
  return now, true
end
