-- The ledger's writes, each one statement: locks are taken and given back within it, so a replica that is stopped, or
-- cut off, in the middle of one never keeps an account from the others. A later version that needs them otherwise makes
-- functions of other names, for old and new replicas run side by side during a rolling restart.
--
-- What holds everywhere: an account's row is locked before anything of it is looked at, several of them in the order of
-- their ids; so what is read afterwards is the newest there is (READ COMMITTED: each statement sees what was committed
-- before it began), and two batches never wait for each other in a circle.

-- What an instance has heard of is a snapshot, not a number: changes are not committed in the order of their numbers.
ALTER TABLE instances DROP COLUMN seen;
ALTER TABLE instances ADD COLUMN heard TXID_SNAPSHOT;

ALTER TABLE checkpoints ADD COLUMN cached_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN reasoning_tokens BIGINT NOT NULL DEFAULT 0;

-- As ledger/base.py's entry_bytes: the columns as a JSON array, over which with the hash before it the next one is.
CREATE FUNCTION entry_hash(
  before BYTEA, account TEXT, seq BIGINT, kind TEXT, amount BIGINT, balance_after BIGINT, ref TEXT, description TEXT,
  created_at BIGINT
) RETURNS BYTEA LANGUAGE sql IMMUTABLE AS $$
  SELECT sha256(before || convert_to(
    '[' || to_json(account) || ',' || seq || ',"' || kind || '",' || amount || ',' || balance_after || ','
    || to_json(ref) || ',' || to_json(description) || ',' || created_at || ']', 'UTF8'))
$$;

-- Does what a replica's queue has gathered, operation by operation, in one transaction. `asking` is the replica's
-- instance. Each operation has a number `n`, its account and a kind:
--
--   hold        set credit aside for a request: as much as there is, from `least` to `amount`, and not beyond the
--               token's cap. Where more is wanted than there is and leases hold some back, it is `short` unless `final`.
--   settle      end a hold with its charge. Of one that is open the charge is at most the hold. One that was leased has
--               no row yet: it is paid from the lease. One that has expired, because its replica was not heard of, is
--               paid late, within what it was held for, what is available now and what its token's spend cap leaves
--               (LEAST passes over the null of one that has none). One that was settled `before` is told again.
--   checkpoint  what a stream has delivered so far.
--   void        end a hold whose replica was never told that it has it.
--   lease       set the credit that the replica may hold from without asking to `target`: less is given back, more is
--               taken where the account has it, at most one part in `share` of what is available. Not where it is not
--               what it was when this was asked (`before`): then it was done before, or comes too late.
--   recall      ask the other replicas to give back what they have leased and do not use.
--   look        nothing: how the account stands.
--
-- The answer to each has how the account stands after it. `in_use` is what the replica has held from its lease when it
-- asks: the rest of the lease is available to it.
CREATE FUNCTION ledger_batch(asking TEXT, batch JSON)
RETURNS TABLE (
  answer_to INT, outcome TEXT, granted BIGINT, paid BIGINT, unpaid BIGINT, balance_now BIGINT, held_now BIGINT,
  own_lease BIGINT, other_leases BIGINT, unanswered BIGINT, cap_spent BIGINT, cap_held BIGINT
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  ops CURSOR FOR
    SELECT * FROM json_to_recordset(batch) AS one (
      n INT, kind TEXT, account TEXT, instance TEXT, id TEXT, token TEXT, price TEXT, amount BIGINT, least BIGINT,
      final BOOLEAN, in_use BIGINT, before BIGINT, target BIGINT, share BIGINT, life_ms BIGINT, leased BOOLEAN, capped BOOLEAN,
      checkpointed BOOLEAN, cost BIGINT, description TEXT, model TEXT, status TEXT, source TEXT, prompt_tokens BIGINT,
      completion_tokens BIGINT, cached_tokens BIGINT, reasoning_tokens BIGINT, upstream TEXT, upstream_id TEXT,
      attempts TEXT, client_request_id TEXT, created_at BIGINT, closed_at BIGINT, first_token_ms BIGINT,
      total_ms BIGINT, remaining BIGINT, key TEXT, completed BOOLEAN, reply TEXT)
    ORDER BY account COLLATE "C", n;
  op RECORD;
  hold RECORD;
  token RECORD;
  is_live BOOLEAN;
  is_done BOOLEAN;
  a_id TEXT;
  a_status TEXT;
  a_balance BIGINT;
  a_held BIGINT;
  a_seq BIGINT;
  a_head BYTEA;
  a_changed BOOLEAN := false;
  l_instance TEXT;
  l_amount BIGINT;
  l_changed BOOLEAN := false;
  available BIGINT;
  now_paid BIGINT;
  paid_late BIGINT;
  entry_kind TEXT;
  keeps_usage BOOLEAN;
BEGIN
  -- Whoever reaps the instance waits for this, or this finds it reaped.
  PERFORM 1 FROM instances WHERE id = asking AND NOT reaped FOR KEY SHARE;
  is_live := FOUND;
  PERFORM 1 FROM accounts
    WHERE id IN (SELECT DISTINCT account FROM json_to_recordset(batch) AS one (account TEXT))
    ORDER BY id FOR UPDATE;

  OPEN ops;
  LOOP
    FETCH ops INTO op;
    is_done := NOT FOUND;

    -- The account and the lease are kept in variables from one operation to the next: a hot account has hundreds in a
    -- batch, and each new version of its row would have to be stepped over by the next one.
    IF is_done OR op.account IS DISTINCT FROM a_id OR op.instance IS DISTINCT FROM l_instance THEN
      IF l_changed THEN
        INSERT INTO credit_leases (instance, account_id, amount) VALUES (l_instance, a_id, l_amount)
          ON CONFLICT (account_id, instance) DO UPDATE SET amount = excluded.amount;
        l_changed := false;
      END IF;
      IF a_changed THEN
        UPDATE accounts SET balance = a_balance, held = a_held, seq = a_seq, chain_head = a_head WHERE id = a_id;
        a_changed := false;
      END IF;
      EXIT WHEN is_done;
      SELECT status, balance, held, seq, chain_head INTO a_status, a_balance, a_held, a_seq, a_head
        FROM accounts WHERE id = op.account;
      a_id := op.account;
      SELECT amount INTO l_amount FROM credit_leases WHERE account_id = op.account AND instance = op.instance;
      l_instance := op.instance;
    END IF;

    answer_to := op.n;
    outcome := 'done';
    granted := NULL; paid := NULL; unpaid := NULL; unanswered := NULL; cap_spent := NULL; cap_held := NULL;
    other_leases := 0;
    available := a_balance - a_held;

    IF a_status IS NULL THEN
      outcome := 'no account';

    ELSIF op.kind = 'settle' THEN
      SELECT amount, charged, late, shortfall, state INTO hold FROM holds WHERE id = op.id;
      IF hold.state IN ('settled', 'released') THEN
        outcome := 'before';
        granted := hold.amount; paid := hold.charged + hold.late; unpaid := hold.shortfall;
      ELSE
        now_paid := 0; paid_late := 0; entry_kind := 'charge'; keeps_usage := false;
        granted := COALESCE(hold.amount, op.amount);
        IF hold.state = 'open' THEN
          now_paid := LEAST(op.cost, hold.amount);
          a_held := a_held - hold.amount;
        ELSIF hold.state IS NULL AND op.leased AND l_amount IS NOT NULL THEN
          now_paid := LEAST(op.cost, op.amount, l_amount);
          l_amount := l_amount - now_paid; l_changed := true;
          a_held := a_held - now_paid;
        ELSE
          outcome := 'late';
          paid_late := GREATEST(0, LEAST(LEAST(op.cost, granted) - COALESCE(hold.charged, 0), available,
            (SELECT spend_cap - spent - held FROM tokens WHERE id = op.token)));
          IF hold.charged > 0 THEN entry_kind := 'late_charge'; END IF;
          -- Nothing more is paid: what the checkpoint said stands.
          keeps_usage := COALESCE(hold.charged, 0) > 0 AND paid_late = 0;
        END IF;
        a_changed := true;
        IF now_paid + paid_late > 0 THEN
          a_balance := a_balance - now_paid - paid_late;
          a_seq := a_seq + 1;
          a_head := entry_hash(a_head, a_id, a_seq, entry_kind, -(now_paid + paid_late), a_balance, op.id,
                               op.description, op.closed_at);
          INSERT INTO ledger (account_id, seq, kind, amount, balance_after, ref, description, created_at, hash)
            VALUES (a_id, a_seq, entry_kind, -(now_paid + paid_late), a_balance, op.id, op.description, op.closed_at,
                    a_head);
        END IF;
        paid := COALESCE(hold.charged, 0) + now_paid + paid_late;
        unpaid := GREATEST(0, op.cost - paid);
        IF hold.state IS NULL THEN
          INSERT INTO holds (id, account_id, token_id, price_id, amount, charged, late, shortfall, state, created_at,
                             closed_at, instance)
            VALUES (op.id, a_id, op.token, op.price, op.amount, now_paid, paid_late, unpaid,
                    CASE WHEN paid > 0 THEN 'settled' ELSE 'released' END, op.created_at, op.closed_at, op.instance);
        ELSE
          UPDATE holds SET charged = charged + now_paid, late = paid_late,
                           shortfall = CASE WHEN keeps_usage THEN shortfall ELSE unpaid END,
                           state = CASE WHEN paid > 0 THEN 'settled' ELSE 'released' END,
                           closed_at = CASE WHEN keeps_usage THEN closed_at ELSE op.closed_at END
            WHERE id = op.id;
        END IF;
        IF NOT keeps_usage THEN
          INSERT INTO usage (request_id, account_id, token_id, model, status, source, prompt_tokens, completion_tokens,
                             remaining, upstream, upstream_id, attempts, client_request_id, created_at, first_token_ms,
                             total_ms, cached_tokens, reasoning_tokens)
            VALUES (op.id, a_id, op.token, op.model, op.status, op.source, op.prompt_tokens, op.completion_tokens,
                    COALESCE(op.remaining, a_balance - a_held + GREATEST(0, COALESCE(l_amount, 0) - op.in_use)), op.upstream, op.upstream_id, op.attempts, op.client_request_id,
                    op.created_at, op.first_token_ms, op.total_ms, COALESCE(op.cached_tokens, 0),
                    COALESCE(op.reasoning_tokens, 0))
            ON CONFLICT (request_id) DO UPDATE SET
              status = excluded.status, source = excluded.source, prompt_tokens = excluded.prompt_tokens,
              completion_tokens = excluded.completion_tokens, remaining = excluded.remaining,
              upstream_id = excluded.upstream_id, attempts = excluded.attempts,
              first_token_ms = excluded.first_token_ms, total_ms = excluded.total_ms,
              cached_tokens = excluded.cached_tokens, reasoning_tokens = excluded.reasoning_tokens;
        END IF;
        IF op.capped THEN
          UPDATE tokens SET spent = spent + now_paid + paid_late,
                            held = held - CASE WHEN hold.state = 'open' THEN hold.amount ELSE 0 END
            WHERE id = op.token AND spend_cap IS NOT NULL
            RETURNING spent, held INTO cap_spent, cap_held;
        END IF;
        IF op.checkpointed THEN
          DELETE FROM checkpoints WHERE hold_id = op.id;
        END IF;
        IF op.key IS NOT NULL AND op.completed THEN
          UPDATE idempotency SET completed = 1, reply = decode(op.reply, 'hex')
            WHERE account_id = a_id AND key = op.key AND request_id = op.id;
        ELSIF op.key IS NOT NULL THEN
          DELETE FROM idempotency WHERE account_id = a_id AND key = op.key AND request_id = op.id AND completed = 0;
        END IF;
      END IF;

    ELSIF op.kind = 'hold' THEN
      SELECT amount, state INTO hold FROM holds WHERE id = op.id;
      SELECT account_id, spend_cap, spent, held, revoked_at, expires_at INTO token FROM tokens WHERE id = op.token;
      SELECT COALESCE(SUM(amount), 0), COUNT(*) FILTER (WHERE recalled) INTO other_leases, unanswered
        FROM credit_leases WHERE account_id = a_id AND instance <> op.instance;
      cap_spent := token.spent; cap_held := token.held;
      IF hold.state IS NOT NULL THEN
        -- It was asked before, and the answer was lost on its way.
        granted := hold.amount;
        outcome := CASE WHEN hold.state = 'open' THEN 'held' ELSE 'lapsed' END;
      ELSIF NOT is_live THEN
        outcome := 'lapsed';
      ELSIF token.account_id IS DISTINCT FROM a_id OR token.revoked_at IS NOT NULL THEN
        outcome := 'revoked';
      ELSIF token.expires_at <= now_ms() THEN
        outcome := 'expired';
      ELSIF a_status <> 'active' THEN
        outcome := 'frozen';
      ELSIF available < op.amount AND NOT op.final AND (other_leases > 0 OR l_amount > op.in_use) THEN
        outcome := 'short';
      ELSIF available < op.least THEN
        outcome := 'not enough';
      ELSIF token.spend_cap - token.spent - token.held < op.least THEN
        outcome := 'cap';
      ELSE
        outcome := 'held';
        granted := LEAST(op.amount, available);
        IF token.spend_cap IS NOT NULL THEN
          granted := LEAST(granted, token.spend_cap - token.spent - token.held);
          UPDATE tokens SET held = held + granted WHERE id = op.token RETURNING held INTO cap_held;
        END IF;
        a_held := a_held + granted; a_changed := true;
        INSERT INTO holds (id, account_id, token_id, price_id, amount, state, created_at, instance, expires_at)
          VALUES (op.id, a_id, op.token, op.price, granted, 'open', op.created_at, asking, now_ms() + op.life_ms);
      END IF;

    ELSIF op.kind = 'checkpoint' THEN
      SELECT state INTO hold FROM holds WHERE id = op.id;
      IF hold.state = 'open' OR (hold.state IS NULL AND op.leased AND l_amount IS NOT NULL) THEN
        INSERT INTO checkpoints (hold_id, account_id, token_id, price_id, amount, model, upstream, prompt_tokens,
                                 completion_tokens, client_request_id, created_at, updated_at, instance,
                                 cached_tokens, reasoning_tokens)
          VALUES (op.id, a_id, op.token, op.price, op.amount, op.model, op.upstream, op.prompt_tokens,
                  op.completion_tokens, op.client_request_id, op.created_at, op.closed_at, op.instance,
                  COALESCE(op.cached_tokens, 0), COALESCE(op.reasoning_tokens, 0))
          ON CONFLICT (hold_id) DO UPDATE SET
            upstream = excluded.upstream, prompt_tokens = excluded.prompt_tokens,
            completion_tokens = excluded.completion_tokens, updated_at = excluded.updated_at,
            cached_tokens = excluded.cached_tokens, reasoning_tokens = excluded.reasoning_tokens;
      END IF;

    ELSIF op.kind = 'void' THEN
      UPDATE holds SET state = 'expired', closed_at = now_ms() WHERE id = op.id AND state = 'open'
        RETURNING amount, token_id INTO hold;
      IF FOUND THEN
        a_held := a_held - hold.amount; a_changed := true;
        UPDATE tokens SET held = held - hold.amount WHERE id = hold.token_id AND spend_cap IS NOT NULL;
      END IF;

    ELSIF op.kind = 'lease' THEN
      IF NOT is_live OR op.instance <> asking THEN
        outcome := 'lapsed';
      ELSIF op.before <> COALESCE(l_amount, 0) THEN
        outcome := 'moved';
      ELSIF op.target <= COALESCE(l_amount, 0) THEN
        a_held := a_held - (COALESCE(l_amount, 0) - op.target); a_changed := true;
        l_amount := op.target; l_changed := true;
        UPDATE credit_leases SET recalled = false WHERE account_id = a_id AND instance = asking AND recalled;
      ELSIF a_status = 'active' THEN
        granted := LEAST(op.target - COALESCE(l_amount, 0), available / op.share);
        IF granted >= op.least THEN
          a_held := a_held + granted; a_changed := true;
          l_amount := COALESCE(l_amount, 0) + granted; l_changed := true;
        END IF;
      END IF;

    ELSIF op.kind = 'recall' THEN
      UPDATE credit_leases SET recalled = true
        WHERE account_id = a_id AND instance <> op.instance AND amount > 0 AND NOT recalled;
      IF FOUND THEN
        PERFORM pg_notify('tollway', 'recall');
      END IF;
    END IF;

    balance_now := a_balance; held_now := a_held; own_lease := COALESCE(l_amount, 0);
    RETURN NEXT;
  END LOOP;
  CLOSE ops;
END $$;

-- Ends what an instance holds: its streams at their checkpoints, its other holds at nothing; its leases go back, its
-- running idempotency keys are free again. Once, whoever finds out, however often. Without an instance: the holds of
-- anyone that are past their own expiry.
CREATE FUNCTION expire_holds(lapsed TEXT)
RETURNS TABLE (request_id TEXT, account TEXT, input_tokens BIGINT, output_tokens BIGINT, charge BIGINT, short BIGINT)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  at BIGINT := now_ms();
  doomed TEXT[];
  an_account TEXT;
  a_balance BIGINT;
  a_held BIGINT;
  a_seq BIGINT;
  a_head BYTEA;
  l_amount BIGINT;
  point RECORD;
  hold RECORD;
  cost BIGINT;
  description TEXT;
BEGIN
  IF lapsed IS NOT NULL THEN
    PERFORM 1 FROM instances WHERE id = lapsed AND NOT reaped FOR UPDATE;
    IF NOT FOUND THEN
      RETURN;
    END IF;
    UPDATE instances SET reaped = true WHERE id = lapsed;
  END IF;
  doomed := ARRAY(SELECT id FROM holds WHERE state = 'open'
                  AND (instance = lapsed OR (lapsed IS NULL AND expires_at < at)));

  FOR an_account IN
    SELECT account_id FROM holds WHERE id = ANY (doomed)
    UNION SELECT account_id FROM credit_leases WHERE instance = lapsed
    UNION SELECT account_id FROM checkpoints WHERE instance = lapsed
    ORDER BY 1
  LOOP
    SELECT balance, held, seq, chain_head INTO a_balance, a_held, a_seq, a_head
      FROM accounts WHERE id = an_account FOR UPDATE;
    SELECT amount INTO l_amount FROM credit_leases WHERE account_id = an_account AND instance = lapsed;

    FOR point IN
      SELECT checkpoints.*, prices.prompt_rate, prices.completion_rate,
             COALESCE(prices.cached_prompt_rate, prices.prompt_rate) AS cached_rate,
             COALESCE(prices.reasoning_rate, prices.completion_rate) AS reasoning_rate
        FROM checkpoints JOIN prices ON prices.id = checkpoints.price_id
       WHERE account_id = an_account AND (instance = lapsed OR (lapsed IS NULL AND hold_id = ANY (doomed)))
       ORDER BY hold_id
    LOOP
      SELECT amount, state INTO hold FROM holds WHERE id = point.hold_id;
      IF hold.state IS NOT NULL AND hold.state <> 'open' THEN
        CONTINUE;
      END IF;
      cost := ((point.prompt_tokens - point.cached_tokens) * point.prompt_rate + point.cached_tokens * point.cached_rate
               + (point.completion_tokens - point.reasoning_tokens) * point.completion_rate
               + point.reasoning_tokens * point.reasoning_rate + 999999) / 1000000;
      charge := LEAST(cost, point.amount);
      IF hold.state IS NULL THEN
        charge := LEAST(charge, COALESCE(l_amount, 0));
        l_amount := l_amount - charge;
        a_held := a_held - charge;
        INSERT INTO holds (id, account_id, token_id, price_id, amount, charged, shortfall, state, created_at, closed_at,
                           instance)
          VALUES (point.hold_id, an_account, point.token_id, point.price_id, point.amount, charge, cost - charge,
                  'expired', point.created_at, at, lapsed);
      ELSE
        a_held := a_held - hold.amount;
        UPDATE holds SET state = 'expired', charged = charge, shortfall = cost - charge, closed_at = at
          WHERE id = point.hold_id;
      END IF;
      IF charge > 0 THEN
        description := point.model || ': ' || point.prompt_tokens || ' + ' || point.completion_tokens || ' tokens';
        a_balance := a_balance - charge;
        a_seq := a_seq + 1;
        a_head := entry_hash(a_head, an_account, a_seq, 'charge', -charge, a_balance, point.hold_id, description, at);
        INSERT INTO ledger (account_id, seq, kind, amount, balance_after, ref, description, created_at, hash)
          VALUES (an_account, a_seq, 'charge', -charge, a_balance, point.hold_id, description, at, a_head);
      END IF;
      UPDATE tokens SET spent = spent + charge, held = held - COALESCE(hold.amount, 0)
        WHERE id = point.token_id AND spend_cap IS NOT NULL;
      INSERT INTO usage (request_id, account_id, token_id, model, status, source, prompt_tokens, completion_tokens,
                         remaining, upstream, attempts, client_request_id, created_at, total_ms, cached_tokens,
                         reasoning_tokens)
        VALUES (point.hold_id, an_account, point.token_id, point.model, 'interrupted', 'checkpoint',
                point.prompt_tokens, point.completion_tokens, a_balance - a_held, point.upstream,
                CASE WHEN point.upstream IS NULL THEN '[]'
                ELSE json_build_array(json_build_object('upstream', point.upstream, 'status', 200))::text END,
                point.client_request_id, point.created_at, point.updated_at - point.created_at, point.cached_tokens,
                point.reasoning_tokens);
      request_id := point.hold_id; account := an_account; input_tokens := point.prompt_tokens;
      output_tokens := point.completion_tokens; short := cost - charge;
      RETURN NEXT;
    END LOOP;
    DELETE FROM checkpoints
     WHERE account_id = an_account AND (instance = lapsed OR (lapsed IS NULL AND hold_id = ANY (doomed)));

    -- What had delivered nothing that was written down.
    FOR hold IN
      UPDATE holds SET state = 'expired', closed_at = at
       WHERE id = ANY (doomed) AND account_id = an_account AND state = 'open'
      RETURNING amount, token_id
    LOOP
      a_held := a_held - hold.amount;
      UPDATE tokens SET held = held - hold.amount WHERE id = hold.token_id AND spend_cap IS NOT NULL;
    END LOOP;
    IF l_amount IS NOT NULL THEN
      a_held := a_held - l_amount;
      DELETE FROM credit_leases WHERE account_id = an_account AND instance = lapsed;
    END IF;
    UPDATE accounts SET balance = a_balance, held = a_held, seq = a_seq, chain_head = a_head WHERE id = an_account;
  END LOOP;

  IF lapsed IS NOT NULL THEN
    UPDATE idempotency SET completed = 1
     WHERE instance = lapsed AND completed = 0
       AND EXISTS (SELECT 1 FROM ledger WHERE ref = idempotency.request_id AND kind = 'charge');
    DELETE FROM idempotency WHERE instance = lapsed AND completed = 0;
  END IF;
END $$;

-- A key is one request's. What runs is known by its instance: the claim of one that was reaped is anybody's.
CREATE FUNCTION claim_key(an_account TEXT, a_key TEXT, digest BYTEA, request TEXT, claiming TEXT, at BIGINT, oldest BIGINT)
RETURNS TABLE (outcome TEXT, earlier_digest BYTEA, earlier_request TEXT, earlier_reply BYTEA)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  earlier RECORD;
BEGIN
  outcome := 'claimed';
  PERFORM 1 FROM instances WHERE id = claiming AND NOT reaped FOR KEY SHARE;
  IF NOT FOUND THEN
    outcome := 'lapsed';
    RETURN NEXT;
    RETURN;
  END IF;
  LOOP
    INSERT INTO idempotency (account_id, key, body_digest, request_id, created_at, instance)
      VALUES (an_account, a_key, digest, request, at, claiming) ON CONFLICT DO NOTHING;
    IF FOUND THEN
      EXIT;
    END IF;
    SELECT * INTO earlier FROM idempotency WHERE account_id = an_account AND key = a_key FOR UPDATE;
    IF NOT FOUND THEN
      CONTINUE;
    END IF;
    IF earlier.request_id = request THEN
      EXIT;
    END IF;
    IF earlier.completed = 1 AND earlier.created_at > oldest THEN
      outcome := 'completed';
    ELSIF earlier.completed = 0
      AND EXISTS (SELECT 1 FROM instances WHERE id = earlier.instance AND NOT reaped) THEN
      outcome := 'running';
    ELSE
      UPDATE idempotency
         SET body_digest = digest, request_id = request, completed = 0, reply = NULL, created_at = at,
             instance = claiming
       WHERE account_id = an_account AND key = a_key;
      EXIT;
    END IF;
    earlier_digest := earlier.body_digest; earlier_request := earlier.request_id; earlier_reply := earlier.reply;
    EXIT;
  END LOOP;
  RETURN NEXT;
END $$;

-- Renews an instance's lease, and says what it has heard of by now; no row where it has been reaped meanwhile.
CREATE FUNCTION renew_instance(an_instance TEXT, hearing TEXT, lease_ms BIGINT) RETURNS SETOF BIGINT
LANGUAGE sql VOLATILE AS $$
  UPDATE instances SET renewals = renewals + 1, heard = hearing::txid_snapshot, expires_at = now_ms() + lease_ms
   WHERE id = an_instance AND NOT reaped RETURNING renewals
$$;
