"""Curation as slow and as obvious as possible: recursion over the interchange dict, no caches."""

from fractions import Fraction

FAILURES = (
    '',
    'Too many consecutive steps have code errors.',
    'Fail to sove the problem within limited steps.',
    'Fail to generate parsable text for next step.',
)


def q(nodes, tag):
    return Fraction(round(nodes[tag]['q_value'] * 10**6), 10**6)


def children(nodes, tag):
    found = []
    while f'{tag}.{len(found) + 1}' in nodes:
        found.append(f'{tag}.{len(found) + 1}')
    return found


def is_answer(nodes, tag):
    return nodes[tag]['final_answer'] not in FAILURES


def answers_below(nodes, tag, reward):
    """Tags of the answers with that reward at or below `tag`, depth first."""
    found = [tag] if is_answer(nodes, tag) and nodes[tag]['q_value'] == reward else []
    for child in children(nodes, tag):
        found += answers_below(nodes, child, reward)
    return found


def steps_between(top, leaf):
    """Tags from `top` (included) down to `leaf`."""
    parts = leaf.split('.')
    tags = ['.'.join(parts[: k + 1]) for k in range(len(parts))]
    return tags[tags.index(top) :]


def mean_q(nodes, tags):
    return Fraction(round(sum(q(nodes, t) for t in tags) / len(tags) * 10**6), 10**6)


def joined(nodes, tags):
    return ''.join(nodes[t]['text'] for t in tags)


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def prompt(question):
    lead = "Let's think step by step and solve the problem with code."
    return f'<|user|>:\n{question}\n<|assistant|>: {lead}'


def sft(trees):
    """Of the trees of one problem."""
    found = []
    for tree in trees:
        nodes = tree['rstar']
        for leaf in answers_below(nodes, '0', 1):
            tags = steps_between('0', leaf)[1:]
            found.append((mean_q(nodes, tags), min(q(nodes, t) for t in tags), nodes, tags))
    chosen = []
    while found and len(chosen) < 2:
        best = max(found, key=lambda f: f[:2])  # max gives the first of equals
        found.remove(best)
        chosen.append(joined(best[2], best[3]).strip())
    query = trees[0]['question']
    return [{'query': query, 'response': text} for text in chosen if 'error' not in text]


def trajectories(trees):
    """Of the trees of one problem: up to 4 right and 4 wrong ones."""
    made = []
    for reward in (1, -1):
        found = []
        for tree in trees:
            nodes = tree['rstar']
            for leaf in answers_below(nodes, '0', reward):
                tags = steps_between('0', leaf)[1:]
                texts = [nodes[t]['text'] for t in tags]
                if texts not in [one['steps'] for one in found]:
                    found.append(
                        {
                            'query': tree['question'],
                            'steps': texts,
                            'values': [float(q(nodes, t)) for t in tags],
                            'labels': [answers_below(nodes, t, 1) != [] for t in tags],
                            'correct': reward == 1,
                        }
                    )
        count = min(4, len(found))
        made += [found[int(Fraction(i, count) * len(found))] for i in range(count)]
    return made


def pairs(tree, final_step_pairs):
    nodes = tree['rstar']
    made = []

    def walk(tag):
        prefix = joined(nodes, steps_between('0', tag)[1:])
        both = children(nodes, tag)
        if final_step_pairs == 'trajectories':
            both = [c for c in both if not is_answer(nodes, c)]
        positives = [c for c in both if answers_below(nodes, c, 1)]
        negatives = [c for c in both if answers_below(nodes, c, -1)]
        positives.sort(key=lambda c: q(nodes, c), reverse=True)
        negatives.sort(key=lambda c: q(nodes, c))
        most_positives = 4 if len(negatives) == 1 else 2
        most_negatives = 4 if len(positives) == 1 else 2
        positives, negatives = positives[:most_positives], negatives[:most_negatives]
        for pos in positives:
            for neg in negatives:
                best = max(
                    mean_q(nodes, steps_between(pos, leaf)) for leaf in answers_below(nodes, pos, 1)
                )
                worst = min(
                    mean_q(nodes, steps_between(neg, leaf))
                    for leaf in answers_below(nodes, neg, -1)
                )
                margin = q(nodes, pos) - q(nodes, neg)
                if not (margin > 0 and best > worst) or margin < Fraction(1, 2):
                    continue
                one, other = nodes[pos]['text'], nodes[neg]['text']
                if edit_distance(one, other) >= 20:
                    made.append(
                        {
                            'prompt': prompt(tree['question']) + prefix,
                            'pos': one,
                            'neg': other,
                            'pos_count': len(positives),
                            'neg_count': len(negatives),
                        }
                    )
        for child in children(nodes, tag):
            if answers_below(nodes, child, 1) and answers_below(nodes, child, -1):
                walk(child)

    walk('0')
    if final_step_pairs == 'trajectories':
        paths = {
            r: [steps_between('0', leaf)[1:] for leaf in answers_below(nodes, '0', r)]
            for r in (1, -1)
        }
        if paths[1] and paths[-1]:

            def rank(tags):
                return mean_q(nodes, tags), min(q(nodes, t) for t in tags)

            made.append(
                {
                    'prompt': prompt(tree['question']),
                    'pos': joined(nodes, max(paths[1], key=rank)),
                    'neg': joined(nodes, min(paths[-1], key=rank)),
                    'pos_count': 1,
                    'neg_count': 1,
                }
            )
    return made
