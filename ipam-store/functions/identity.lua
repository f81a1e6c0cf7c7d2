-- A host id belongs to one machine, to one agent on it (its state folder), and to one boot at a time. Another machine,
-- or another agent on the same machine, is refused. Machines that were copied with their state folders differ only in
-- their boots. So a second boot is refused until the first is silent; after a reboot that is soon. If both go on,
-- nobody can tell which of them is the host, and both are refused until an operator decides.
local MAX_BOOTS = 8
-- A share of the silence (silence_of) after which a boot has ended: a boot that is heard for this long goes on.
local GOES_ON = 1 / 4

local function words_in(text)
  local words = {}
  for word in string.gmatch(text or '', '%S+') do
    table.insert(words, word)
  end
  return words
end

local function has_word(text, word)
  return text ~= nil and string.find(' ' .. text .. ' ', ' ' .. word .. ' ', 1, true) ~= nil
end

-- A list of words with one more at the end. If the list gets too long, the first words are dropped.
local function with_word(text, word)
  local words = {}
  for _, one in ipairs(words_in(text)) do
    if one ~= word then
      table.insert(words, one)
    end
  end
  table.insert(words, word)
  return table.concat(words, ' ', math.max(1, #words - MAX_BOOTS + 1))
end

-- What the ledger knows of a host: its identity, for which epoch it has re-asserted, and which list it has to tell.
local function known_of(root, host)
  local held = redis.call('HMGET', root .. ':host:' .. host,
    'machineId', 'agentId', 'bootId', 'bootIds', 'ousted', 'clones', 'seenMs', 'asserted', 'tell')
  return {
    machineId = held[1] or nil,
    agentId = held[2] or nil,
    bootId = held[3] or nil,
    bootIds = held[4] or nil,
    ousted = held[5] or nil,
    clones = held[6] or nil,
    seenMs = tonumber(held[7] or nil),
    asserted = held[8] or nil,
    tell = held[9] or nil,
  }
end

-- Twice the longest time between two heartbeats, as the host says it. A boot that is silent for this long has ended.
local function silence_of(ask)
  return ask.periodMs and 2 * ask.periodMs or ask.suspectMs / 2
end

local function is_agent(known, ask)
  return known.machineId == ask.machineId
    and (not known.agentId or not ask.agentId or known.agentId == ask.agentId or known.bootId == ask.bootId)
end

-- Refuses another machine or another agent, unless the host of that id is silent and holds no lease.
local function refuse_second(root, ask, other, yields_to, now)
  local deadline = redis.call('ZSCORE', root .. ':hosts', ask.host)
  local live = deadline and (tonumber(deadline) > now or not memory_of(root).generation) or is_untold(root)
  local holds = redis.call('ZCARD', ids_key(root, ask.host))
  if not live and holds == 0 then
    return nil
  end
  return refuse('HOST_CONFLICT',
    other .. ', ' .. (live and 'calls itself' or 'holds ' .. holds .. ' leases as')
      .. ' host ' .. ask.host .. (live and '' or ': forget the host if that machine is gone')
      .. (not live and yields_to.machineId == ask.machineId
        and '; run "voltnet host settle" if it is this one, without its state folder' or ''),
    { host = ask.host, machineId = yields_to.machineId, yieldsTo = yields_to.word })
end

-- Refuses both boots. The host still counts as live: its leases stay, and a recovery waits for it.
local function refuse_clones(root, ask, known, now)
  local session = root .. ':host:' .. ask.host
  local memory = memory_of(root)
  local boots = with_word(known.clones, ask.bootId)
  enter(root, {
    host = ask.host,
    machineId = known.machineId or ask.machineId,
    bootId = known.bootId or ask.bootId,
    suspectMs = ask.suspectMs,
  }, known, now)
  if not has_word(known.clones, ask.bootId) then
    redis.call('HSET', session, 'clones', boots)
  end
  ask_again(root, ask.host)
  memory.heard[ask.host] = nil
  memory.rivals[ask.host] = nil
  return refuse('HOST_CONFLICT',
    'two machines with one machine id, ' .. (known.machineId or ask.machineId) .. ', call themselves host ' .. ask.host
      .. ' (boots ' .. boots .. '): on the one that is ' .. ask.host .. ', run "voltnet host settle"',
    { host = ask.host, machineId = known.machineId or ask.machineId, clones = words_in(boots),
      yieldsTo = ask.machineId })
end

-- Notes that the host's own boot was heard while others were. Forgets boots that were heard only briefly: their
-- messages were late.
local function note_own(rivals, now, silence)
  for boot, rival in pairs(rivals) do
    if now - rival.last > 2 * silence then
      rivals[boot] = nil
    else
      rival.own_first = rival.own_first or now
      rival.own_last = now
    end
  end
end

-- Notes that another boot than the host's was heard.
local function note_rival(root, ask, now)
  local memory = memory_of(root)
  local rivals = memory.rivals[ask.host] or {}
  local count, oldest = 0, nil
  for boot, rival in pairs(rivals) do
    count = count + 1
    oldest = (not oldest or rival.last < rivals[oldest].last) and boot or oldest
  end
  local rival = rivals[ask.bootId]
  if not rival then
    if count == MAX_BOOTS then
      rivals[oldest] = nil
    end
    rival = { first = now }
    rivals[ask.bootId] = rival
  end
  rival.last = now
  memory.rivals[ask.host] = rivals
  return rival
end

-- The refusal of another boot than the host's. An earlier boot cannot come back: if it goes on sending, it is of
-- another machine. Messages that were only late come once, or all at one time.
local function conflict_of_boots(root, ask, known, now)
  local silence = silence_of(ask)
  local is_older = has_word(known.bootIds, ask.bootId)
  local silent = known.seenMs and now - known.seenMs or silence
  if not is_older and silent >= silence then
    return nil
  end
  local rival = note_rival(root, ask, now)
  local span = silence * GOES_ON
  if is_older then
    redis.call('HSET', root .. ':host:' .. ask.host, 'sureMs', digits(now + silence))
  end
  local goes_on = now - rival.first >= span
  if goes_on and (is_older or rival.own_first and rival.own_last - rival.own_first >= span) then
    known.clones = known.bootId
    return refuse_clones(root, ask, known, now)
  end
  local wait = is_older and span or math.max(silence - silent, 1)
  return refuse('HOST_CONFLICT',
    'host ' .. ask.host .. ' was heard from another boot of machine ' .. ask.machineId .. ', ' .. known.bootId
      .. ', ' .. digits(silent) .. ' ms ago: waits until that is silent',
    { host = ask.host, machineId = ask.machineId, bootId = known.bootId }, math.ceil(wait))
end

-- Whether other hosts may know a host that this server has lost: true for any until all hosts have told their lists.
local function may_have_been(root, host)
  return redis.call('ZSCORE', root .. ':roster', host) or is_untold(root)
end

-- Why the sender of a heartbeat is refused as the host; nil if it is the host.
local function conflict_with(root, ask, known, now)
  if known.clones or not known.machineId and ask.yieldsTo == ask.machineId and may_have_been(root, ask.host) then
    return refuse_clones(root, ask, known, now)
  end
  if not known.machineId then
    -- This server has lost the host's identity, but other hosts may know the host. It believes a sender that says that
    -- it was refused because of another machine: that sender must not get the id by being faster.
    return ask.yieldsTo and may_have_been(root, ask.host)
      and refuse_second(root, ask, 'another machine, ' .. ask.yieldsTo,
        { machineId = ask.yieldsTo, word = ask.yieldsTo }, now) or nil
  end
  if known.machineId ~= ask.machineId then
    return refuse_second(root, ask, 'another machine, ' .. known.machineId,
      { machineId = known.machineId, word = known.machineId }, now)
  end
  if not is_agent(known, ask) then
    return refuse_second(root, ask, 'another agent (' .. known.agentId .. ') with the machine id ' .. known.machineId,
      { machineId = known.machineId, word = known.agentId }, now)
  end
  if has_word(known.ousted, ask.bootId) then
    return refuse('HOST_CONFLICT',
      'an operator has decided that another machine with the machine id ' .. ask.machineId .. ' is host ' .. ask.host,
      { host = ask.host, machineId = known.machineId, yieldsTo = known.bootId })
  end
  if known.bootId and known.bootId ~= ask.bootId then
    return conflict_of_boots(root, ask, known, now)
  end
  local rivals = memory_of(root).rivals[ask.host]
  if rivals then
    note_own(rivals, now, silence_of(ask))
  end
  return nil
end

-- Notes the machine, agent and boot of the host from now on. A new boot may not end leases of the boot before it until
-- that one is silent for certain: `sureMs`.
local function note_identity(root, ask, known, now)
  local session = root .. ':host:' .. ask.host
  if known.machineId and not is_agent(known, ask) or known.machineId == nil then
    redis.call('HDEL', session, 'agentId', 'bootIds', 'ousted', 'sureMs')
    known = {}
  end
  if ask.agentId and ask.agentId ~= known.agentId then
    redis.call('HSET', session, 'agentId', ask.agentId)
  end
  if not has_word(known.bootIds, ask.bootId) then
    redis.call('HSET', session, 'bootIds', with_word(known.bootIds or known.bootId, ask.bootId))
  end
  if known.bootId and known.bootId ~= ask.bootId then
    redis.call('HSET', session, 'sureMs', digits(now + silence_of(ask)))
    memory_of(root).rivals[ask.host] = nil
  end
end

-- settle {host, machineId, agentId, bootId} -> {known}: an operator has decided that this machine is the host, of
-- several with the same machine id. The host's leases stay; it has to re-assert them. HOST_CONFLICT for another machine
-- id. HOST_ALIVE if the ledger knows which agent and boot are the host, and these live.
local function settle(keys, args)
  local root = keys[1]
  local ask = cjson.decode(args[1])
  local host, session = ask.host, root .. ':host:' .. ask.host
  local known = known_of(root, host)
  if not known.machineId or not redis.call('ZSCORE', root .. ':roster', host) then
    return '{"known":false}'
  end
  if known.machineId ~= ask.machineId then
    return reply_of(refuse('HOST_CONFLICT', 'another machine, ' .. known.machineId .. ', is host ' .. host
      .. ': forget the host if that machine is gone', { host = host, machineId = known.machineId }))
  end
  local is_its_own = is_agent(known, ask) and known.bootId == ask.bootId
  local deadline = redis.call('ZSCORE', root .. ':hosts', host)
  if not known.clones and not is_its_own and deadline
    and (tonumber(deadline) > now_ms(root) or not memory_of(root).generation) then
    return reply_of(refuse('HOST_ALIVE', 'host ' .. host .. ' is alive: stop its agent first', { host = host }))
  end
  local ousted = known.ousted
  for _, boots in ipairs({ known.bootIds or '', known.bootId or '', known.clones or '' }) do
    for _, boot in ipairs(words_in(boots)) do
      if boot ~= ask.bootId then
        ousted = with_word(ousted, boot)
      end
    end
  end
  redis.call('HDEL', session, 'clones', 'asserted', 'sureMs', 'ousted')
  redis.call('HSET', session, 'agentId', ask.agentId, 'bootId', ask.bootId, 'bootIds', ask.bootId)
  if ousted then
    local kept = {}
    for _, boot in ipairs(words_in(ousted)) do
      if boot ~= ask.bootId then
        table.insert(kept, boot)
      end
    end
    redis.call('HSET', session, 'ousted', table.concat(kept, ' '))
  end
  local memory = memory_of(root)
  ask_again(root, host)
  memory.heard[host], memory.rivals[host] = nil, nil
  return '{"known":true}'
end

redis.register_function({ function_name = 'volt1_settle', callback = readable(settle), flags = { 'allow-oom' } })
