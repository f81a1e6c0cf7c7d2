-- Permission to grant: the ledger is armed. It is kept only in the memory of this library: a server that has restarted,
-- was promoted, or has loaded another version of the library, does not have it. Then every host that was not suspect
-- has to be heard before the next grant, and what these hosts have seen shows whether this server has lost data.

-- By root, as one server may have several ledgers:
--   generation  the last one given; nil while the ledger is not armed
--   sessions    host -> its identity (`who_of`), for hosts that may be granted leases
--   heard       host -> its identity, for hosts that have sent a heartbeat since this memory began
--   rivals      host -> boot id -> when a boot other than the host's was heard, and when the host was heard meanwhile
--   said        attachment id -> true, for leases that were re-asserted while the ledger was not armed
--   found       network -> its revision here, if the network is also in the indexes of names and subnets (is_known)
--   since       ms, when this memory began, or the last loss was found
--   beat        ms, the last heartbeat of any host
--   asker       {host, since (ms)} of an unclaimed ledger: the host that asks the others whether the fleet is new
--   window      the heartbeats of a suspect period: their number, and the hosts that had waited in vain for an answer
--   grace       ms, until when no silence counts
--   live        host -> true, for live hosts; sum: the digest of that list
--   sums        roster -> digest of the list at that roster, for the last changes of an armed ledger
--   roster      the roster of the last change that this memory has made to the list; nil in a heartbeat without one
--   news        by the roster that a host has seen: what it is told of the list of hosts
--   pages       pages of the list of hosts, and their roster; next_read: ms, when the next host may read the list, if
--               no newcomer waits for that host
--   vouchers    the last hosts that have vouched for newcomers; vouched: how often that happened
--   voucher     the host that was asked to vouch for newcomers, and until when (ms) no other host is asked
-- While the ledger is not armed:
--   lost        true during a recovery: data that a server has lost is being restored
--   counted_to  up to which name it is known which hosts live, as an argument of ZRANGEBYLEX; true for all
--   missing     host -> true, for awaited hosts; missing_count; named: the hosts that were named last
--   missed      awaited hosts that were given up
--   untold      list (roster, digest) -> the hosts that have to tell it; told: list -> true, for lists that were told;
--               telling: list -> the host that was asked for it, and until when (ms) no other host is asked
-- In either state:
--   fresh       key of held addresses -> the first fresh range, after it was checked that no address of it is held
--   counted     field of <root>:leases -> its value, for counts of held addresses
--   applied     host -> the revision up to which it last said that it has applied all changes
--   bridges     bridge -> network -> true, for networks that have or had the bridge (edits.lua); nil until it is needed
--   logged      the second number of the last id in a log, apart from grants
--   batches     text -> what requests for leases share, parsed (open_batch); batch_count
--   looked      ms, when the server was looked at last (server.lua); `unfit`: why nothing may be granted on it
--   swept       ms, when the next sweep is due; `turn`: the suspect with which it begins; is_busy: the last sweep has
--               left work; sweeper: the host that has to beat soon for it, and until when (ms) no other host is asked
local memories = {}

local function memory_of(root)
  local memory = memories[root]
  if not memory then
    memory = {
      sessions = {}, heard = {}, said = {}, found = {}, swept = 0, turn = 0, batches = {}, batch_count = 0,
      fresh = {}, counted = {}, vouchers = {}, vouched = 0, applied = {}, rivals = {}, logged = 0, live = {}, sum = 0, sums = {},
      counted_to = '-', missing = {}, missing_count = 0, missed = {}, untold = {}, told = {}, telling = {},
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
  local held = redis.call('HMGET', root .. ':meta', 'revision', 'roster', 'lost', 'changedFrom', 'pending')
  return {
    generation = tonumber(redis.call('HGET', root .. ':leases', GENERATION) or 0) or 0,
    revision = tonumber(held[1] or 0) or 0,
    roster = tonumber(held[2] or 0) or 0,
    lost = held[3] == '1',
    changed_from = tonumber(held[4] or 0) or 0,
    pending = tonumber(held[5] or 0) or 0,
  }
end

local function epoch_of(generation)
  return math.floor(generation / EPOCH_UNIT)
end

-- False if the ledger is not armed, or its data is not what this server wrote: it was emptied or replaced.
local function is_current(root)
  local generation = memory_of(root).generation
  return generation ~= nil and tonumber(redis.call('HGET', root .. ':leases', GENERATION)) == generation
end

-- The refusal of a change of the ledger while it is not armed.
local function unarmed(root)
  if is_current(root) then
    return nil
  end
  return disarm(root)
end

-- The identity of the sender as one text: machine, agent and boot; "-" for a part that an earlier agent does not send.
local function who_of(ask)
  return ask.machineId .. ' ' .. (ask.agentId or '-') .. ' ' .. (ask.bootId or '-')
end

local function is_part(known, said)
  return not known or known == '-' or said == '-' or known == said
end

-- Whether two identities can be of one agent: the parts that both have are equal.
local function is_same_who(known, said)
  local machine, agent, boot = string.match(known, '^(%S+) (%S+) (%S+)$')
  local its_machine, its_agent, its_boot = string.match(said, '^(%S+) (%S+) (%S+)$')
  return machine == its_machine and is_part(agent, its_agent) and is_part(boot, its_boot)
end

-- The refusal of a sender that is not the host in whose name it asks: another machine, agent or boot. Nil for the host
-- itself, for a host that the ledger does not know, and for an agent that does not name its machine.
local function foreign(root, host, who)
  if not who then
    return nil
  end
  local known = redis.call('HMGET', root .. ':host:' .. host, 'machineId', 'agentId', 'bootId', 'clones')
  if known[4] then
    return refuse('HOST_CONFLICT', 'two machines call themselves host ' .. host .. ': an operator has to decide',
      { host = host, machineId = known[1] or nil })
  end
  if not known[1] then
    return nil
  end
  local its_own = who_of({ machineId = known[1], agentId = known[2] or nil, bootId = known[3] or nil })
  if is_same_who(its_own, who) then
    return nil
  end
  local machine = string.match(who, '^%S+')
  return refuse('HOST_CONFLICT', machine ~= known[1] and 'another machine, ' .. known[1] .. ', calls itself host ' .. host
    or 'host ' .. host .. ' is known by another agent or boot of machine ' .. machine,
    { host = host, machineId = known[1] })
end

-- The boot of a host while the boot before it may still live (`sureMs`); nil later.
local function young_boot(root, host, now)
  local known = redis.call('HMGET', root .. ':host:' .. host, 'bootId', 'sureMs')
  local sure = known[2] and tonumber(known[2])
  return sure and sure > now and known[1] or nil
end

-- Opens the session of a host that has re-asserted, and is no newcomer for whom nobody has vouched.
local function open_session(root, host, who, epoch)
  local memory = memory_of(root)
  local asserted = redis.call('HGET', root .. ':host:' .. host, 'asserted') == epoch
  local joining = redis.call('ZSCORE', root .. ':joining', host)
  memory.sessions[host] = memory.generation and asserted and not joining and who or nil
end

-- Adds a host to those that the ledger waits for: a set with its size, so that no heartbeat walks all hosts.
local function await(memory, host)
  if not memory.missing[host] then
    memory.missing[host] = true
    memory.missing_count = memory.missing_count + 1
  end
end

local function await_no_longer(memory, host)
  if memory.missing[host] then
    memory.missing[host] = nil
    memory.missing_count = memory.missing_count - 1
  end
end

-- True while hosts have yet to tell their lists of hosts: until then any host may have existed.
local function is_untold(root)
  return next(memory_of(root).untold) ~= nil
end

-- Asks a host to re-assert, before it is granted anything.
local function ask_again(root, host)
  local memory = memory_of(root)
  redis.call('HDEL', root .. ':host:' .. host, 'asserted')
  memory.sessions[host] = nil
  if not memory.generation and memory.live[host] then
    await(memory, host)
  end
end

-- Why a host may not be granted anything; nil if it may, which costs no command in most cases. Arming opens no
-- sessions, since that would walk all hosts: the session of a host opens with its next request.
local function barred(root, host, who)
  local memory = memory_of(root)
  local session = memory.sessions[host]
  if memory.unfit then
    return refuse('STORE_UNAVAILABLE', 'Redis: ' .. memory.unfit, { sent = false }, 1000)
  end
  if session and (session == who or is_same_who(session, who)) then
    return nil
  end
  local heard = memory.heard[host]
  if memory.generation and not session and who and heard and is_same_who(heard, who) then
    open_session(root, host, heard, digits(epoch_of(memory.generation)))
    if memory.sessions[host] then
      return nil
    end
  end
  local other = foreign(root, host, who)
  if other then
    return other
  end
  return recovering(memory.generation
    and 'host ' .. host .. ' has yet to say what it holds, or to be seen by another host'
    or 'the ledger hears every host before it grants anything')
end
