-- Each host calls this once in a period: it says that the host lives, and answers what the host has to do.

-- JSON of a list in an answer: its name and its first entries, `most` at most. An empty list is left out, except for
-- agents before 1.7 (`all`), which expect it.
local function listed(name, list, all, most)
  if #list == 0 then
    return all and ',"' .. name .. '":[]' or ''
  end
  local items = {}
  for index = 1, math.min(#list, most or #list) do
    items[index] = cjson.encode(list[index])
  end
  return ',"' .. name .. '":' .. json_list(items)
end

local function flagged(name, is, all)
  return is and ',"' .. name .. '":true' or all and ',"' .. name .. '":false' or ''
end

-- Handles a heartbeat while the ledger is armed. Answers whether the host has to vouch for newcomers at once, whether
-- it has to beat soon for the next sweep, and the hosts and leases that this sweep has found.
local function serve(root, ask, has_asserted, owes, now)
  local memory = memory_of(root)
  note_applied(root, ask.host, ask.applied)
  local is_newcomer, is_to_vouch = vouch(root, ask, now)
  memory.sessions[ask.host] = has_asserted and not is_newcomer and who_of(ask) or nil
  if owes then
    redis.call('HDEL', root .. ':host:' .. ask.host, 'tell')
  end
  local fallen, reclaimed, is_to_sweep = sweep(root, ask.host, now)
  return is_to_vouch, is_to_sweep, fallen, reclaimed
end

-- Handles a heartbeat while the ledger is not armed: the host counts as heard. Answers the hosts that are still
-- missing, or nil and the hosts that were given up; and whether the host has to tell its list.
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

-- JSON of the answer to a heartbeat, built by hand, since most of it is the same each time.
local function answered(root, ask, meta, done)
  local memory, all = memory_of(root), ask.seen.hosts ~= nil
  local state = memory.generation and 'armed' or meta.lost and 'recovering' or 'arming'
  return '{"nowMs":"' .. digits(done.now) .. '","state":"' .. state .. '"'
    .. (memory.unfit and ',"unfit":' .. cjson.encode(memory.unfit) or '')
    .. flagged('mayAcquire', memory.sessions[ask.host] ~= nil and not memory.unfit, all)
    .. flagged('reassert', not done.has_asserted, all)
    .. ',"epoch":"' .. digits(epoch_of(meta.generation)) .. '"'
    .. (done.before and ',"before":"' .. done.before .. '"' or '')
    .. flagged('rebooted', done.rebooted, all)
    .. flagged('began', done.began, all)
    .. flagged('ended', meta.lost and not done.awaiting, all)
    .. listed('awaiting', done.awaiting or {}, all, MAX_NAMED)
    .. listed('missed', done.missed or {}, all, MAX_NAMED)
    .. listed('moved', done.moved, all)
    .. listed('fallen', done.fallen, all)
    .. (all and #done.reclaimed == 0 and ',"reclaimed":[]' or #done.reclaimed > 0 and ',"reclaimed":'
      .. json_list(done.reclaimed) or '')
    .. (all and #done.due == 0 and ',"due":[]' or #done.due > 0 and ',"due":' .. json_list(done.due) or '')
    .. flagged('tell', done.is_to_tell, all)
    .. flagged('vouch', done.is_to_vouch, all)
    .. flagged('sweep', done.is_to_sweep)
    .. ',"seen":{"generation":"' .. digits(meta.generation)
    .. '","revision":' .. digits(meta.revision) .. ',"roster":' .. digits(meta.roster) .. done.list .. '}}'
end

-- heartbeat {host, machineId, agentId?, yieldsTo?, bootId, periodMs?, suspectMs, windowMs?, newFleet, late?,
--            seen: {generation (text), revision, roster, digest, or of an agent before 1.7 hosts: [host…]},
--            follows?: {network: position…}, applied?}
-- -> {nowMs (text), state, unfit?, mayAcquire?, reassert?, epoch (text), before?, rebooted?, began?, ended?,
--     awaiting?: [host…], missed?: [host…], moved?: [network…], fallen?: [host…], reclaimed?: [lease…],
--     due?: [{id, generation (text)}…], tell?, vouch?, sweep?, seen: {generation (text), revision, roster,
--     changes?: [[host, whether it lives]…], digest?, some?: [host…], behind?, hosts?: [host…]}},
--     or of an unclaimed ledger {nowMs, state, asks}
-- Fields that are false or empty are left out, except for agents before 1.7.
-- applied: the revision up to which the host has applied changes of networks. yieldsTo: from the details of the last
-- HOST_CONFLICT. late: how many heartbeats had no answer since the last answered one.
-- state is armed, arming, recovering or unclaimed; unfit: why the server may grant nothing. asks: this host has to
-- find out whether the fleet is new. before: the state of the host before, live or suspect. began, ended: this call has
-- begun, or ended, a recovery; missed: hosts that the end did not wait for.
-- moved: networks that the host follows and in which something has happened since. fallen: hosts that this call has
-- made suspect. tell: the host has to tell its list before it re-asserts. vouch: newcomers wait for its next heartbeat.
-- sweep: more hosts have fallen silent, or more of their leases are to be given back; the host should beat again soon.
-- changes: changes of the list of hosts since the host read it; digest: that of the list with these changes. some: for
-- a host without a list, some hosts that are no newcomers. behind: the changes are too many for an answer, and this
-- host may read them now (volt1_roster). hosts: the whole list, for an agent before 1.7.
-- The cost does not depend on how many leases the host holds, nor on how many hosts there are.
local function heartbeat(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local now = now_ms(root)
  local seen = ask.seen
  seen.generation = tonumber(seen.generation)
  seen.digest = seen.digest or -1
  local known = known_of(root, ask.host)
  local conflict = conflict_with(root, ask, known, now)
  if conflict then
    return reply_of(conflict)
  end
  local second
  now, second = keep_time(root, now)
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
  memory.roster = nil
  local before = enter(root, ask, known, now)
  note_identity(root, ask, known, now)
  memory.heard[ask.host] = who_of(ask)
  local has_asserted = known.machineId == ask.machineId and known.asserted == digits(epoch_of(meta.generation))
  local awaiting, missed, is_to_tell, is_to_vouch, is_to_sweep = nil, nil, false, false, false
  if not memory.generation then
    awaiting, missed, is_to_tell = recover(root, ask, meta, has_asserted, known.tell, above, now)
  end
  local fallen, reclaimed, list = {}, {}, ''
  if memory.generation then
    is_to_vouch, is_to_sweep, fallen, reclaimed = serve(root, ask, has_asserted, known.tell, now)
    meta.roster = memory.roster or meta.roster
    if not seen.hosts then
      list = news_of(root, meta, seen, is_to_vouch, now)
    elseif meta.roster ~= seen.roster then
      list = listed('hosts', redis.call('ZRANGE', root .. ':hosts', 0, -1), true)
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
    due = due_of(root, ask.host, now),
    is_to_tell = is_to_tell,
    is_to_vouch = is_to_vouch,
    is_to_sweep = is_to_sweep,
    list = list,
  })
end

redis.register_function({ function_name = 'volt1_heartbeat', callback = readable(heartbeat), flags = { 'allow-oom' } })
