"""Equivalence of answers: what is plain, what needs sympy, what must not hang."""

import sys
from concurrent.futures import Future

import pytest

from rstar_jax import grading
from rstar_jax.execution.process import WorkerDied
from rstar_jax.grading import judge, normalise, plain


@pytest.fixture(scope='module')
def grader():
    with grading.Grader(workers=1, seconds=2) as grader:
        yield grader


@pytest.mark.parametrize(
    ('answer', 'truth'),
    [
        ('18.0', '18'),
        ('√16', '4'),
        ('√2.25', '1.5'),
        ('2√3 + √15', r'2\sqrt{3}+\sqrt{15}'),
        ('[6, 31, -1]', '(6,31,-1)'),
        ('[ 6 31 -1]', '(6,31,-1)'),
        ('[-2.  1.]', '1,-2'),
        ('array([-2.,  1.])', '1,-2'),
        ('[np.float64(1.5), np.float64(2.0)]', '1.5, 2'),
        ('[[-1.  0.]\n [ 0. -1.]]', r'\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}'),
        ('(0, 9) U (9, 36)', r'(0,9) \cup (9,36)'),
        ('set()', r'\emptyset'),
        ('$18', '18'),
        ('0.5', r'\frac 12'),
        ('0.5', '\\frac\n{1}\n{2}'),
        ('2', '\\sqrt\t4'),
        ('11*sqrt(2)', r'11\sqrt2'),
        (r'1+\sqrt{19}, 1-\sqrt{19}', r'1 \pm \sqrt{19}'),
        (r'3 < x \le 4', '(3,4]'),
        ('-10x + 14y - 22z = 8', '5x - 7y + 11z + 4 = 0'),
        ('(a*b + 2*a + 5*b + 10)', '(a+5)(b+2)'),
        (r'\frac{\sqrt{3}}{3}', r'\frac{1}{\sqrt{3}}'),
        ('2**(1/3)', r'\sqrt[3]{2}'),
        ('10**(-3)', '0.001'),
        ('x^(n+1)', 'x^{n+1}'),
        ('3^(2)', '9'),
        ('x^-1', '1/x'),
        ('2**-0.5', r'\frac{1}{\sqrt{2}}'),
        ('(-2+7j)', '-2+7i'),
        ('2*log(3)', r'2\ln 3'),
        ('2*Abs(x + 1)', '2|x+1|'),
        ('[1, 2]', r'\{1,2\}'),
        ('1 1/2', '3/2'),
        ('12 345 678', '12345678'),
        ('x^2 3', '3x^2'),
        (r'\log_2 8', '3'),
        (r'\log_5 125', '3'),
        ('10 km/hr', '10 km/h'),
        (r'10 \mathrm{~km} / \mathrm{h}', '10 km/h'),
        (r'9.8\,\text{m}/\text{s}^2', '9.8'),
        (r'1500 \mathrm{~kg} / \mathrm{m}^{3}', '1500 kg/m^3'),
        ('x-axis', r'\text{x axis}'),
        (r'\text{HT}', 'HT'),
        (r'\text{No}', 'No'),
        (r'\text{no}', '$No.$'),
        ('no', 'No'),
        (r'\text{(b)}', 'b'),
        (r'\text{(b)}', '(B)'),
        (r'\text{(b)}', r'\text{b}'),
        (r'\text{N}', 'N'),
        (r'\textbf{Hz}', 'hz'),
        (r'\text{up}, \text{in}', 'in, up'),
        ('1,000, 2,000', '1000, 2000'),
        ('1,000 and 2,000', '2000, 1000'),
        (r'\$1,000, \$2,000', '1000,2000'),
        ('1,000,000, 5', '1000000, 5'),
        ('1,200,3', '1, 200, 3'),
        ('(1,200)', '(1, 200)'),
        ('AB', r'A \cdot B'),
        ('3:1', '6:2'),
        ('3:1', '3/1'),
        ('2^{40}', '1099511627776'),
        ('1:2:3', '2:4:6'),
        (r'0.3\overline{6}', '11/30'),
        (r'-0.\overline{3}', '-1/3'),
        (r'\cos 60^\circ', '1/2'),
        (r'4\sin(20^{\circ})', r'4\cos 70^\circ'),
        ('1, 2, and 3', '1,2,3'),
        (r'\{x \mid 1 < x \le 2\}', '(1,2]'),
        (r'\{x|x\leq 1\text{ or }x>2\}', r'(-\infty,1]\cup(2,\infty)'),
        (r'\langle 1,2\rangle', '(1,2)'),
        (r'\emptyset', r'\{\}'),
        ('10⁻³', '0.001'),
        ('1⅛', '9/8'),
        (r'\approx 3.5', '3.5'),
        ('3:00 pm', r'3:00\text{ p.m.}'),
        ('2(3)', '6'),
        ('(3)(2)', '6'),
        (r'\textbf{(A)}\ 5', 'A'),
        (r'\textbf{(A)}\ 5', '5'),
        (r'\mathrm{(A) \ }\frac{1}{2}', r'\textbf{(A)}\ 0.5'),
        ('C. 12', r'\text{(C)}'),
        (r'(\text{B})', r'\textbf{(B) }7'),
        (r'\begin{vmatrix}1&2\\3&4\end{vmatrix}', '-2'),
        (r'\frac{1}{2^{100}}', '2^{-100}'),
        (r'\sqrt{4+2\sqrt{3}}', r'1+\sqrt{3}'),
        ('(x^2-1)^{100}', '(x-1)^{100}(x+1)^{100}'),
        (r'10^{-20}(x+1)', r'10^{-20}+\frac{x}{10^{20}}'),
        ('(x+1)^2-x^2-2x-1', '0'),
        (r'(\sqrt{2}+1)(\sqrt{2}-1)-1', '0'),
        (r'1-\frac{1}{2011!}', r'\frac{2011!-1}{2011!}'),
        (r'(1+i\sqrt{3})^3', '-8'),
        ('1e-05', '10^{-5}'),
        ('1.024e3', '2^{10}'),
        ('0.30000000000000004', '0.3'),
        ('3.3333333333333335', '10/3'),
        ('1099511627776.0', '2^{40}'),
        ('1e+20', '10^{20}'),
        ('4.0', r'\sqrt{16}'),
        ('[1 - sqrt(19), 1 + sqrt(19)]', r'1 \pm \sqrt{19}'),
        ('binomial(n, floor(n/2))', r'\binom{n}{\lfloor n/2 \rfloor}'),
        ('2**n*factorial(n)', '2^n n!'),
        ('ceiling(n/2)', r'\lceil n/2 \rceil'),
        ('log(8, 2)', '3'),
        ('sinh(x)', r'\frac{e^x-e^{-x}}{2}'),
        ('[Rational(1, 2), Fraction(3, 2)]', '0.5, 1.5'),
        ('Eq(y, 2*x + 3)', 'y=2x+3'),
        ('{x: 5}', 'x=5'),
        ('[{x: 1, y: sqrt(2)}]', r'(1,\sqrt2)'),
        ('[(1, 2)]', '(1,2)'),
        ('[(1, 2)]', r'\{(1,2)\}'),
        ('[-2; 3]', '[-2,3]'),
        (r'\binom52', '10'),
        (r'\binom nk', r'\dbinom{n}{k}'),
        ('[-3, 3]', r'\pm 3'),
        ('[-3, 3]', r'x = \pm 3'),
        ('[-2, 1 - sqrt(5), 1 + sqrt(5)]', r'-2, 1\pm\sqrt{5}'),
        ('6abc', '6*a*b*c'),
        ('-6xyz', '-6(xyz)'),
        (r'\frac{1}{6}abc', r'\frac{abc}{6}'),
        ('7 men', '7'),
        (r'5\text{men}', '5'),
        ('1 1/2', r'\sqrt{\frac{9}{4}}'),
        (r'0.\overline{3}', '3^{-1}'),
        (r'3\frac{1}{2}\pi', r'\frac{7\pi}{2}'),
        (r'x-2\frac13 y', r'x-\frac{7y}{3}'),
        (r'2\frac{4}{3}\pi', r'\frac{8\pi}{3}'),
        (r'0.\dot{3}', '1/3'),
        (r'0.\dot{1}\dot{2}', '4/33'),
        (r'2.5\dot12\dot3', r'2.5\overline{123}'),
        ('1.5 x 10^3', '1500'),
        ('(2x10^{3}, 1)', '(2000, 1)'),
        (r'1011_{\text{two}}', '1011_2'),
        ('AF_{sixteen}', 'AF_{16}'),
        (r'3\colon 2', '6:4'),
        (r'{5 \choose 2}', '10'),
        (r'{n \choose 2}', r'\frac{n(n-1)}{2}'),
        (r'25\cent', '25'),
        ('25¢', '25 cents'),
        (r'\text{\$}5', '5'),
        (r'5\text{\%}', '0.05'),
        (r'\text{no solutions}', 'No solution'),
        (r'30\,\frac{\text{km}}{\text{h}}', '30 km/h'),
        (r'9.8\frac{\text{m}}{\text{s}^2}', r'9.8\,\text{m}/\text{s}^2'),
        (r'x \equiv 5 \pmod 7', '5'),
        (r'x \equiv 5 \pmod 7', r'5 \pmod{7}'),
        ('x ≡ 1, 3 (mod 8)', '1, 3'),
        (r'5 \pmod{7}', r'5 \text{ (mod 7)}'),
        ('One hundred twenty', '120'),
        (r'\text{two thousand three hundred and five}', '2305'),
        ('twenty-one hundred', '2100'),
        ('one hundred million', '10^8'),
        (r'\lg 100', '2'),
        (r'\lg^2 x', r'(\log_{10} x)^2'),
        (r'(-\infty,\infty)', r'\text{all real numbers}'),
        (r'x \in \mathbb{R}', 'all reals'),
        (r'\sqrt{a}\sqrt{b}', r'\sqrt{ab}'),
        (r'x\sqrt{x}', r'\sqrt{x^3}'),
        (r'\sqrt{x-5}\sqrt{x-6}', r'\sqrt{(x-5)(x-6)}'),
        (r'\sqrt{(x-100)^2}', '|x-100|'),
        (r'3\cdot 10^{20}x^2+3y^2=3', '10^{20}x^2+y^2=1'),
        (r'\sqrt{2}x+2y=0', r'x+\sqrt{2}y=0'),
        ('1.41421', r'\sqrt{2}'),
        ('33.3333%', '1/3'),
        ('0.333333', r'\frac{100}{3}\%'),
        ('70.7107%', r'\frac{\sqrt{2}}{2}'),
        ('0.707107', r'50\sqrt{2}\%'),
        ('$x=1$ or $x=2$', '1, 2'),
        ('$(2,3)$ and $(4,5)$', '(4,5), (2,3)'),
        ('$6$ cm', '6'),
        (r'5 \mathrm{~m}', '5'),
        (r'5\,\mathrm{m}', '5 m'),
        (r'3+4\mathrm{i}', '3+4i'),
        (r'\begin{cases} x=1 \\ y=2 \end{cases}', '(1,2)'),
        (r'\left\{\begin{array}{l}x=1 \\ y=2\end{array}\right.', 'y=2, x=1'),
        (r'\sqrt[3]{-8}', '-2'),
        (r'\sqrt[3]{1-x}', r'-\sqrt[3]{x-1}'),
        ('Interval.Lopen(0, sqrt(2))', r'(0,\sqrt{2}]'),
        ('Union(Interval(-oo, -1), Interval.open(3, oo))', r'(-\infty,-1]\cup(3,\infty)'),
        ('(-2 < x) & (x <= sqrt(2))', r'(-2,\sqrt{2}]'),
        ('((-oo < x) & (x < -2)) | ((2 < x) & (x < oo))', r'(-\infty,-2)\cup(2,\infty)'),
        ('EmptySet', r'\text{no solution}'),
        (r'20^\circ\text{C}', '20'),
        ('68°F', '68 degrees'),
        (r'\boldsymbol{\frac{1}{2}}', '0.5'),
        (r'\textcolor{blue}{\textbf{\frac12}}', '0.5'),
        (r'5^{\text{th}}', '5'),
        (r'x\in\mathbb R', 'all real numbers'),
        (r'3 \text{ to } 4', '3:4'),
        (r'\text{A, B, and D}', 'D, A, B'),
        (r'\frac{\pi}{4}+k\pi\ (k\in\mathbb{Z})', r'x=k\pi+\frac{\pi}{4}, k \in \mathbb Z'),
        ('x>3 or x<2', r'x<2\text{ or }x>3'),
        ('x<2 or x>3', 'x<2, x>3'),
        ('x<2 or x>3', r'(-\infty,2)\cup(3,\infty)'),
        ('x>0 and y>0', 'x>0, y>0'),
        ('f^{-1}(x)=x+1', 'x+1'),
    ],
)
def test_equivalent_both_ways(grader, answer, truth):
    assert grader.equivalent(answer, truth)
    assert grader.equivalent(truth, answer)


@pytest.mark.parametrize(
    ('answer', 'truth'),
    [
        ('19', '18'),
        ('√13', '3'),
        ('3√13', '9'),
        ('√12', '2'),
        ('[1 -2]', '-1'),
        ('[1, 2]', '(1,2)'),
        ('[6, 31]', '(6,31,-1)'),
        ('[1 2]', '12'),
        ('[[1 2]\n [3 4]]', r'\begin{pmatrix}1&3\\2&4\end{pmatrix}'),
        ('3.14', r'\pi'),
        ('.0000673', '.0000672'),
        ('(2,1)', '(1,2)'),
        ('(1,2]', '(1,2)'),
        ('5 m', '5 cm'),
        ('52_9', '52_8'),
        ('x + 1', 'y + 1'),
        ('', '3'),
        (r'\frac{1}{', '2'),
        ('2i+7j', '9i'),
        (r'\{3,2\}', '(2,3)'),
        (r'\{2,3\}', '(2,3)'),
        ('1 1/2', '11/2'),
        ('1 100/200', '1100/200'),
        ('1 2', '12'),
        ('1 2', '3'),
        ('10 km/h', '10 mph'),
        ('5 m/s', '5 km/h'),
        (r'5 \mathrm{~m} / \mathrm{s}', r'5 \mathrm{~km} / \mathrm{h}'),
        (r'5\text{ m}/\text{s}', r'5\text{ m}/\text{s}^2'),
        (r'\text{A > B}', r'\text{A < B}'),
        (r'\text{-}', r'\text{+}'),
        (r'\text{No}', 'Yes'),
        (r'\text{No}', 'oN'),
        (r'\text{N}', 'n'),
        (r'\text{(b)}', 'c'),
        (r'\text{Hz}', 'kHz'),
        ('1,000, 2,000', '1, 0, 2, 0'),
        ('1,200,3', '1200, 3'),
        ('(1,200)', '1200'),
        ('1,200,', '1, 200'),
        (r'\text{是}', r'\text{否}'),
        ('xyz - a', 'xyz a'),
        ('ABC', 'CBA'),
        ('HT', 'TH'),
        ('3:1', '3'),
        ('1099511627776', '1099511627777'),
        ('10^{70}+1', '10^{70}'),
        ('2^{40}', '2^{40}+1'),
        ('1:2:3', '1:3:2'),
        ('1:2:3', '1/6'),
        (r'7\text{ a.m.}', r'7\text{ p.m.}'),
        ('10:30 am', '10:30 pm'),
        (r'\cos 60^\circ', '-0.952412980415'),
        (r'0.\overline{3}', '0.3'),
        ('0.333334', '1/3'),
        ('1.414213', r'\sqrt{2}'),
        ('1.4142', r'\sqrt{2}'),
        ('1.41421357', r'\sqrt{2}'),
        ('0.33333', '1/3'),
        ('33.3336%', '1/3'),
        ('70.7140%', r'\frac{\sqrt{2}}{2}'),
        ('0.707114', r'50\sqrt{2}\%'),
        ('1, 1, 2', '1, 2, 2'),
        ('x^2=4', 'x=4'),
        ('y^2=4x', 'y=4x'),
        ('2x=6', 'x=6'),
        ('2(3)', '5'),
        (r'\{x|x>1\}', r'\{x|x<1\}'),
        (r'\{x|1<x<2\}', '[1,2]'),
        (r'\textbf{(A)}\ 5', 'B'),
        (r'\textbf{(A)}\ 5', '6'),
        (r'\begin{vmatrix}1&2\\3&4\end{vmatrix}', r'\begin{pmatrix}1&2\\3&4\end{pmatrix}'),
        (r'\frac{1}{2^{100}}', '0'),
        (r'2^{-100}', '2^{-101}'),
        (r'1-2^{-60}', '1'),
        (r'1-\frac{1}{2^{2009}}', r'1-\frac{1}{2^{2010}}'),
        (r'1-\frac{1}{2011!}', '1'),
        (r'\frac{1}{2^{301}}', r'\frac{1}{2^{300}}'),
        (r'\frac{1}{100!}', '0'),
        (r'\frac{x}{3^{300}}', r'\frac{x}{2^{300}}'),
        ('e^{-300}', 'e^{-200}'),
        (r'\pi+10^{-70}', r'\pi'),
        ('[3, 5]', r'\pm 3'),
        ('log(8, 2)', r'\log_8 2'),
        ('{x: 5}', 'y=5'),
        ('[(1, 2)]', '(2,1)'),
        ('[-2; 3]', '(-2,3)'),
        ('Eq(y, 2*x + 3)', 'y=2x+4'),
        ('[-3, 3, 3]', r'\pm 3'),
        ('6xyz', '6'),
        ('3xyz', '3abc'),
        ('2abcd', '2'),
        ('x^2abc', 'x^2'),
        ('a^3+b^3+c^3-3abc', 'a^3+b^3+c^3-3'),
        (r'-2 \text{ is impossible}', '-2'),
        (r'3 \text{ or more}', '3'),
        (r'3 \text{ at least}', '3'),
        ('1.0', r'1-\frac{1}{2^{40}}'),
        ('0.0', r'\frac{1}{2^{60}}'),
        ('0.5', r'\frac{5000000001}{10000000000}'),
        ('1234567891.0', '1234567890'),
        ('1000000007.5', '1000000007'),
        ('18446744073709551615.0', '2^{64}'),
        ('1 1/2', r'\sqrt{1}'),
        (r'3\frac{1}{2}\pi', r'\frac{3\pi}{2}'),
        ('n^{100}+1', 'n^{100}+2'),
        (r'10^{-20}x', r'2 \cdot 10^{-20}x'),
        (r'\frac{x}{10^{16}}', '0'),
        (r'0.\dot{3}', '0.3'),
        (r'\dot{x}', 'x'),
        (r'1011_{\text{two}}', '1011_3'),
        (r'3\colon 2', '2:3'),
        ('25¢', r'\$25'),
        (r'\text{no solution}', r'\text{no real solution}'),
        (r'30\frac{\text{km}}{\text{h}}', '30 mph'),
        (r'5 \pmod{7}', r'5 \pmod{8}'),
        (r'x \equiv 5 \pmod{7}', r'x \equiv 6 \pmod{7}'),
        (r'n \equiv 5 \pmod{7}', r'x \equiv 5 \pmod{7}'),
        (r'17 \bmod 5', '17'),
        ('one hundred twenty', '100, 20'),
        ('two three', '23'),
        (r'\lg x', r'\ln x'),
        (r'(0,\infty)', 'all real numbers'),
        (r'\sqrt{ab}', r'-\sqrt{a}\sqrt{b}'),
        (r'\sqrt{x^2}', 'x'),
        (r'\sqrt{x}', r'\sqrt{|x|}'),
        (r'\sqrt{x^6}', 'x^3'),
        (r'\sqrt{x^2-2x+1}', '1-x'),
        (r'\sqrt{-1-x^2}', r'-\sqrt{-1-x^2}'),
        (r'\sqrt{x^2}\sqrt{y^2}\sqrt{z^2}', 'xyz'),
        ('y+10^{-20}x=0', r'y+2\cdot 10^{-20}x=0'),
        ('10^{20}x^2+y^2=1', '10^{20}x^2+2y^2=1'),
        ('$5,$6', '56'),
        (r'5 \mathrm{~m}', r'5 \mathrm{~g}'),
        (r'2\mathrm{x}', '2'),
        (r'\begin{cases} x=1 \\ y=2 \end{cases}', '(2,1)'),
        (r'\sqrt[3]{-8}', '2'),
        (r'\sqrt[3]{x^3}', '|x|'),
        (r'\sqrt{-2}\sqrt{-3}', r'\sqrt{6}'),
        ('(2 < x) & (x < 5)', '[2,5)'),
        ('Interval(0, 1)', '(0,1)'),
        (r'n \in \mathbb{Z}', r'\mathbb{R}'),
        ('3 to 4', '4:3'),
        (r'\text{A and B}', 'A, C'),
        ('x<2 or x>3', 'x<2 and x>3'),
        (r'(-\infty,2)\cup(3,\infty)', r'x<2\text{ and }x>3'),
        ('f^{-1}(x)', '1/f(x)'),
        ('3!!', '720'),
    ],
)
def test_not_equivalent(grader, answer, truth):
    assert not grader.equivalent(answer, truth)


def test_a_base_may_be_left_out_of_an_answer_alone(grader):
    assert grader.equivalent('2516', '2516_8')
    assert grader.equivalent('1011', r'1011_{\text{two}}')
    assert grader.equivalent('2A', '2A_{16}')
    others = (
        ('2516_8', '2516'),
        ('2516', '2561_8'),
        ('1358', '2516_8'),
        ('a', 'a_1'),
        ('3x', '3x_1'),
    )
    for answer, truth in others:
        assert not grader.equivalent(answer, truth)


def test_the_number_e_as_sympy_prints_it(grader):
    for answer, truth in (('E', 'e'), ('(1 + E)/2', r'\frac{1+e}{2}'), ('x*E**2', 'xe^2')):
        assert grader.equivalent(answer, truth)
        assert not grader.equivalent(truth, answer)  # a letter there
    assert grader.equivalent('E', r'\text{(E)}')
    assert not grader.equivalent('E', '2e')


def test_several_accepted_answers(grader):
    assert grader.equivalent('x+1', ['7', '1+x'])
    assert not grader.equivalent('x+1', ['7', 'x+2'])
    assert not grader.equivalent('x+1', [])


def test_classes_of_candidates(grader):
    answers = ['0.5', '1/2', '2', 'x+1', '1+x', r'\frac{2}{4}', '', '', '(1,2)', '[1,2]', 'x > 2']
    assert grader.classes([*answers, r'(2,\infty)']) == [0, 0, 1, 2, 2, 0, 3, 3, 4, 5, 6, 6]


@pytest.mark.parametrize(
    ('answers', 'numbers'),
    [
        (['(3,2)', r'\{2,3\}', '(2,3)', '[2,3]'], [0, 1, 2, 1]),
        (['(3,2,1)', '[3, 2, 1]', '[3 2 1]', '(1,2,3)'], [0, 0, 0, 1]),
        (['1099511627776', '2^{40}', '1099511627777', '1099511627776.0'], [0, 0, 1, 0]),
        (['1000000007/1000000009', '1000000006/1000000008'], [0, 1]),
        (['[-3, 3]', r'\pm 3', r'\pm 4'], [0, 0, 1]),
        (['3:1', '3', '6:2', '3:2', '3/2'], [0, 1, 0, 2, 2]),
        (['HT', 'TH', r'\text{HT}'], [0, 1, 0]),
        (['No', r'\text{No}', 'no', 'Yes'], [0, 0, 0, 1]),
        (['b', r'\text{(b)}', 'B', '(B)', 'c'], [0, 0, 0, 0, 1]),
        (['Hz', 'MHz', r'\text{Hz}'], [0, 1, 0]),
        (['1,000, 2,000', '2000, 1000', '1,200,3'], [0, 0, 1]),
        (['5 m', '5 cm', '5 m'], [0, 1, 0]),
        ([r'5\sqrt{2}\text{ m}', r'5\sqrt2\text{ cm}', r'\sqrt{50}\text{ m}'], [0, 1, 0]),
        (['x=2, y=3', 'x=3, y=2', 'y=3, x=2', '(2,3)'], [0, 1, 0, 0]),
        (['17_8', '17_9', '17', '17_{8}'], [0, 1, 2, 0]),
        (['a_n=2n', 'b_n=2n', 'a_n=n+n'], [0, 1, 0]),
        ([r'x=\pm 3', '3,-3', '-3 and 3', '3'], [0, 0, 0, 1]),
        ([r'\sqrt{x^2}', '|x|', 'x', r'\sqrt{x}\sqrt{y}', r'\sqrt{xy}'], [0, 0, 1, 2, 2]),
        (['1 2', '12', '3'], [0, 1, 2]),
        (['1/3', '0.333333333'], [0, 0]),
        (['1:2:3', '1:3:2', '2:4:6'], [0, 1, 0]),
        (['2^{-100}', '2^{-101}', '0'], [0, 1, 2]),
        (['n^{100}+1', 'n^{100}+2', '1+n^{99}n', 'n^{100}+1.0'], [0, 1, 0, 0]),
        (['10^{12}+0.1x', r'10^{12}+\frac{x}{10}', '10^{12}+2x'], [0, 0, 1]),
        (['y=n^{100}+1', 'y=n^{100}+2', '2y=2n^{100}+2'], [0, 1, 0]),
    ],
)
def test_what_is_near_is_not_the_same_class(grader, answers, numbers):
    assert grader.classes(answers) == numbers


def test_an_error_of_one_of_several_comparisons_is_told(monkeypatch):
    monkeypatch.setattr(sys, 'executable', '/nowhere/at/all')  # so that no worker starts
    with grading.Grader(workers=1) as own, pytest.raises(WorkerDied):
        own.submit('x+1', ['x+2', 'x+3']).result(60)


def test_an_answer_that_is_compared_with_many_is_taken_apart_once():
    parts = plain.split_unit, plain.number, plain.words
    before = [part.cache_info().misses for part in parts]
    answers = [f'{8000 + i}.5' for i in range(40)]
    assert sum(plain.verdict(one, two) for one in answers for two in answers) == 40
    misses = [part.cache_info().misses - old for part, old in zip(parts, before)]
    assert 0 < max(misses) <= len(answers)


def test_hopeless_pairs_end_in_time(grader):
    assert grader.submit('9^{9^{9^9}}', '3').result(60) is False
    assert grader.equivalent('x+2', '2+x')


def test_parts_may_be_empty():
    assert judge.key('()') == judge.key('')
    assert judge.key('(,1)') != judge.key('(1,)')


def test_an_answer_without_a_key_is_asked_about_once(monkeypatch):
    """Each time would take as long as the limits allow."""
    asked = []

    def killed(job):
        asked.append(job)
        future = Future()
        future.set_result(False)
        return future

    own = grading.Grader(workers=1)
    monkeypatch.setattr(own, '_ask', killed)
    for _ in range(3):
        assert own.classes(['x^{x^9}', 'y!', 'x^{x^9}']) == [0, 1, 0]
    assert asked == [{'answer': 'x^{x^9}'}, {'answer': 'y!'}]


def test_module_functions():
    pairs = [('1/2', '0.5'), ('a+b', 'b+a'), ('a+b', 'a-b')]
    assert grading.equivalent_many(pairs) == [True, True, False]
    assert grading.equivalent('1/2', ['3', '0.5'])
    assert grading.classes(['1', '1.0', 'one', 'won']) == [0, 0, 0, 1]


def test_garbage_is_cleaned_in_a_moment():
    """In the main process, where nothing bounds it: what looks back too often would not end."""
    for part, end in (
        ('^(', ')'),
        (r'\sqrt(', ')'),
        (r'\frac{', '}'),
        (r'\sqrt()', ''),
        ('binomial(,', ')'),
    ):
        count = 6000 // len(part + end)
        for text in (part * count + end * count, part * (6000 // len(part))):
            assert len(normalise.clean(text)) >= 4000
