-- Permission to grant. It is kept in the memory of this library alone: a server that has restarted, was promoted
-- or has loaded another version has none. Then every host that was not suspect is heard before the next grant,
-- and what one of them has seen tells whether this server has lost any of it.

-- By root, as one server may have several ledgers:
--   generation  the last one given; nil while the ledger is not armed
--   sessions    host -> machine id of those that may be granted leases
--   heard       host -> machine id of those that have sent a heartbeat since the memory began
--   said        attachment id -> true of leases that were re-asserted while the ledger was not armed
--   since       ms, when it began, or the last loss was found
--   beat        ms, the last heartbeat of any host
--   grace       ms, until when no silence counts
--   fresh       key of held addresses -> the first fresh range, of which this memory knows that it is
--   counted     field of <root>:leases -> what is counted there of held addresses
--   batches     text -> what requests of leases share, taken apart; batch_count
--   looked      ms, when the server was looked at last (server.lua); `unfit`: why nothing may be granted on it
--   swept       ms, the last sweep; `turn`: with which suspect the next one begins
local memories = {}

local function memory_of(root)
  local memory = memories[root]
  if not memory then
    memory = {
      sessions = {}, heard = {}, said = {}, swept = 0, turn = 0, batches = {}, batch_count = 0,
      fresh = {}, counted = {},
    }
    memories[root] = memory
  end
  return memory
end

local function recovering(message)
  return refuse('RECOVERING', message, nil, 250)
end

local function disarm(root)
  if memory_of(root).generation then
    memories[root] = nil
  end
  return recovering('the ledger hears every host before it changes anything')
end

-- What the ledger counts, and whether it has lost something that is being restored.
local function meta_of(root)
  local held = redis.call('HMGET', root .. ':meta', 'revision', 'roster', 'lost')
  return {
    generation = tonumber(redis.call('HGET', root .. ':leases', GENERATION) or 0) or 0,
    revision = tonumber(held[1] or 0) or 0,
    roster = tonumber(held[2] or 0) or 0,
    lost = held[3] == '1',
  }
end

local function epoch_of(generation)
  return math.floor(generation / EPOCH_UNIT)
end

-- False when the store is not what this server has written: emptied, or another's.
local function is_current(root)
  local generation = memory_of(root).generation
  return generation ~= nil and tonumber(redis.call('HGET', root .. ':leases', GENERATION)) == generation
end

-- The refusal of whatever changes the ledger while it is not armed.
local function unarmed(root)
  if is_current(root) then
    return nil
  end
  return disarm(root)
end

-- The refusal of what another machine than the host's asks for in its name; nil for the host's own, for one that the
-- ledger does not know, and for an agent that does not say which machine it is on.
local function foreign(root, host, machine)
  local known = machine and redis.call('HGET', root .. ':host:' .. host, 'machineId')
  if not known or known == machine then
    return nil
  end
  return refuse('HOST_CONFLICT', 'another machine, ' .. known .. ', calls itself host ' .. host,
    { host = host, machineId = known })
end

-- The refusal of what a host may not be granted. Costs no command where it may.
local function barred(root, host, machine)
  local memory = memory_of(root)
  local session = memory.sessions[host]
  if memory.unfit then
    return refuse('STORE_UNAVAILABLE', 'Redis: ' .. memory.unfit, { sent = false }, 1000)
  end
  if session == machine then
    return nil
  end
  local other = foreign(root, host, machine)
  if other then
    return other
  end
  return recovering(memory.generation
    and 'host ' .. host .. ' has yet to say what it holds, or to be seen by another host'
    or 'the ledger hears every host before it grants anything')
end

-- Lets a host be granted leases that has said what it holds, and that is no newcomer whom nobody vouches for.
local function open_session(root, host, machine, epoch)
  local memory = memory_of(root)
  local asserted = redis.call('HGET', root .. ':host:' .. host, 'asserted') == epoch
  local joining = redis.call('ZSCORE', root .. ':joining', host)
  memory.sessions[host] = memory.generation and asserted and not joining and machine or nil
end
