-- One call a period says that a host lives, and answers what it has to do.

local function encoded(list, most)
  local items = {}
  for index = 1, math.min(#list, most or #list) do
    items[index] = cjson.encode(list[index])
  end
  return json_list(items)
end

-- What an armed ledger does with a heartbeat. Answers whether the host is to vouch for newcomers at once.
local function serve(root, ask, has_asserted, owes, now)
  local memory = memory_of(root)
  note_applied(root, ask.host, ask.applied)
  local is_newcomer, is_to_vouch = vouch(root, ask, now)
  memory.sessions[ask.host] = has_asserted and not is_newcomer and who_of(ask) or nil
  if owes then
    redis.call('HDEL', root .. ':host:' .. ask.host, 'tell')
  end
  local fallen, reclaimed = sweep(root, now)
  return is_to_vouch, fallen, reclaimed
end

-- What one does that is not armed: counts this host among those that were heard. Answers who is missing still, or nil
-- and who was missed; and whether the host is to tell its list.
local function recover(root, ask, meta, has_asserted, owes, above, now)
  local memory = memory_of(root)
  local is_to_tell = meta.lost and not ask.seen.hosts and asks_for_list(root, ask, meta, owes, above, now)
  if meta.lost and not has_asserted then
    await(memory, ask.host)
  else
    await_no_longer(memory, ask.host)
  end
  local awaiting, missed = try_to_arm(root, meta, now, ask.windowMs)
  return awaiting, missed, is_to_tell or false
end

-- JSON of the answer to a heartbeat, put together by hand: most of it is the same each time.
local function answered(root, ask, meta, done)
  local memory = memory_of(root)
  local state = memory.generation and 'armed' or meta.lost and 'recovering' or 'arming'
  return '{"nowMs":"' .. digits(done.now) .. '","state":"' .. state
    .. '","unfit":' .. cjson.encode(memory.unfit or cjson.null)
    .. ',"mayAcquire":' .. tostring(memory.sessions[ask.host] ~= nil and not memory.unfit)
    .. ',"reassert":' .. tostring(not done.has_asserted)
    .. ',"epoch":"' .. digits(epoch_of(meta.generation))
    .. '","before":' .. cjson.encode(done.before or cjson.null)
    .. ',"rebooted":' .. tostring(done.rebooted)
    .. ',"began":' .. tostring(done.began)
    .. ',"ended":' .. tostring(meta.lost and not done.awaiting)
    .. ',"awaiting":' .. encoded(done.awaiting or {}, MAX_NAMED)
    .. ',"missed":' .. encoded(done.missed or {}, MAX_NAMED)
    .. ',"moved":' .. encoded(done.moved)
    .. ',"fallen":' .. encoded(done.fallen)
    .. ',"reclaimed":' .. encoded(done.reclaimed)
    .. ',"due":' .. json_list(due_of(root, ask.host, done.now))
    .. ',"tell":' .. tostring(done.is_to_tell)
    .. ',"vouch":' .. tostring(done.is_to_vouch)
    .. ',"seen":{"generation":"' .. digits(meta.generation)
    .. '","revision":' .. digits(meta.revision) .. ',"roster":' .. digits(meta.roster) .. done.list .. '}}'
end

-- heartbeat {host, machineId, agentId?, yieldsTo?, bootId, periodMs?, suspectMs, windowMs?, newFleet, late?,
--            seen: {generation (text), revision, roster, digest, or of an agent before 1.7 hosts: [host…]},
--            follows?: {network: position…}, applied?}
-- -> {nowMs (text), state, unfit?, mayAcquire, reassert, epoch (text), before?, rebooted, began, ended,
--     awaiting: [host…], missed: [host…], moved: [network…], fallen: [host…], reclaimed: [lease…],
--     due: [{id, generation (text)}…], tell, vouch, seen: {generation (text), revision, roster,
--     changes?: [[host, whether it lives]…], digest?, behind?, withinMs?, hosts?: [host…]}},
--     or of an unclaimed ledger {nowMs, state, asks}
-- applied: up to which revision the host has applied what has changed of networks.
-- yieldsTo: what the last HOST_CONFLICT said so in its details. late: heartbeats without an answer since the last that
-- had one.
-- state is armed, arming, recovering or unclaimed; unfit: why the server may grant nothing. asks: this host
-- finds out whether the fleet is new. before: what the host was, live or suspect. began, ended: this call has begun,
-- or ended, a recovery; missed: whom that did not wait for.
-- moved: those that the host follows and in which something has happened since. fallen: whom this call has made
-- suspect. tell: the host has to tell its list before it re-asserts. vouch: its next heartbeat is waited for.
-- changes: of an armed ledger, what the host does not know of the list of hosts; with them its list is the one of that
-- digest. behind: there are more, to be read within that time (volt1_roster). hosts: all of it, for an agent before 1.7.
-- Costs the same whatever the host holds, and however many hosts there are.
local function heartbeat(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local now = now_ms(root)
  local seen = ask.seen
  seen.generation = tonumber(seen.generation)
  seen.digest = seen.digest or -1
  local session = root .. ':host:' .. ask.host
  local known = known_of(root, ask.host)
  local conflict = conflict_with(root, ask, known, now)
  if conflict then
    return reply_of(conflict)
  end
  local second
  now, second = keep_time(root)
  if second then
    drop_gone(root, now)
  end
  look_at_server(root, now)
  local meta = meta_of(root)
  local memory = memory_of(root)
  if memory.generation and memory.generation ~= meta.generation then
    memories[root] = nil
  end
  local began, above = false, is_above(seen, meta)
  if above then
    began = take_for_lost(root, ask, meta, now)
  elseif meta.generation == 0 then
    if not ask.newFleet then
      return '{"nowMs":"' .. digits(now) .. '","state":"unclaimed","asks":'
        .. tostring(is_asker(root, ask.host, now)) .. '}'
    end
    meta.generation = EPOCH_UNIT
    redis.call('HSET', root .. ':leases', GENERATION, digits(EPOCH_UNIT))
    redis.call('HSET', root .. ':meta', 'revision', 0, 'roster', 0)
  end
  memory = memory_of(root)
  memory.lost = meta.lost or nil
  note_beat(root, now, ask)
  local before = enter(root, ask, now)
  note_identity(root, ask, known, now)
  memory.heard[ask.host] = who_of(ask)
  local owed = redis.call('HMGET', session, 'asserted', 'tell')
  local has_asserted = owed[1] == digits(epoch_of(meta.generation))
  local awaiting, missed, is_to_tell, is_to_vouch = nil, nil, false, false
  if not memory.generation then
    awaiting, missed, is_to_tell = recover(root, ask, meta, has_asserted, owed[2], above, now)
  end
  local fallen, reclaimed, list = {}, {}, ''
  if memory.generation then
    is_to_vouch, fallen, reclaimed = serve(root, ask, has_asserted, owed[2], now)
    meta.roster = tonumber(redis.call('HGET', root .. ':meta', 'roster'))
    if not seen.hosts then
      list = news_of(root, meta, seen)
    elseif meta.roster ~= seen.roster then
      list = ',"hosts":' .. encoded(redis.call('ZRANGE', root .. ':hosts', 0, -1))
    end
  end
  return answered(root, ask, meta, {
    now = now,
    before = before,
    rebooted = (known.bootId or ask.bootId) ~= ask.bootId,
    has_asserted = has_asserted,
    began = began,
    awaiting = awaiting,
    missed = missed,
    moved = memory.generation and moved_of(root, ask.follows or {}) or {},
    fallen = fallen,
    reclaimed = reclaimed,
    is_to_tell = is_to_tell,
    is_to_vouch = is_to_vouch,
    list = list,
  })
end

redis.register_function({ function_name = 'volt1_heartbeat', callback = readable(heartbeat), flags = { 'allow-oom' } })
