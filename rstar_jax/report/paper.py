"""What the paper (arXiv 2501.04519) reports, to be drawn beside a run.

Its models start from Qwen2.5-Math-7B. Accuracies are in percent: of the base model first (of which
no search is reported), then of rounds 1 to 4.
"""

MODEL = 'Qwen2.5-Math-7B'

ALONE = {
    'math500': (58.8, 69.6, 73.6, 75.8, 78.4),
    'aime2024': (0.0, 3.3, 10.0, 16.7, 26.7),
    'amc23': (22.5, 30.0, 35.0, 45.0, 47.5),
    'olympiadbench': (21.8, 34.7, 39.0, 44.1, 47.1),
    'collegemath': (41.6, 44.5, 45.7, 49.6, 52.5),
    'gsm8k': (91.6, 88.4, 89.1, 89.3, 89.7),
    'gaokao2023en': (51.7, 57.4, 59.7, 62.8, 65.7),
}
SEARCH = {
    'math500': (None, 75.2, 86.6, 87.0, 89.4),
    'aime2024': (None, 10.0, 43.3, 46.7, 50.0),
    'amc23': (None, 57.5, 75.0, 80.0, 87.5),
    'olympiadbench': (None, 35.7, 59.4, 61.6, 65.3),
    'collegemath': (None, 45.4, 55.6, 56.5, 59.0),
    'gsm8k': (None, 90.9, 94.0, 94.2, 95.0),
    'gaokao2023en': (None, 60.3, 76.4, 77.1, 80.5),
}
SOLVED = (None, 60.17, 66.60, 77.86, 90.25)  # of 747k training problems, after each round
